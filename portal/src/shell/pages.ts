/** The pages of the navigation, each with the letter that follows `g`. */
export const PAGES = [
  { to: "/", name: "Overview", letter: "o", ranged: false },
  { to: "/recommendations", name: "Recommendations", letter: "r", ranged: false },
  { to: "/executions", name: "Executions", letter: "x", ranged: false },
  { to: "/events", name: "Events & audit", letter: "e", ranged: true },
] as const;

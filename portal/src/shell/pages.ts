/** The pages of the navigation, each with the letter that follows `g`. */
export const PAGES = [
  { to: "/", name: "Overview", letter: "o", ranged: false },
  { to: "/cost", name: "Cost", letter: "c", ranged: true },
  { to: "/performance", name: "Performance", letter: "p", ranged: true },
  { to: "/resources", name: "Resources", letter: "u", ranged: true },
  { to: "/application", name: "Application", letter: "a", ranged: true },
  { to: "/recommendations", name: "Recommendations", letter: "r", ranged: false },
  { to: "/executions", name: "Executions", letter: "x", ranged: false },
  { to: "/events", name: "Events & audit", letter: "e", ranged: true },
  { to: "/settings", name: "Settings", letter: "s", ranged: false },
] as const;

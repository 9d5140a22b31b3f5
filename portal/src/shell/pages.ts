/** The pages of the navigation, each with the letter that follows `g`; `measured` ones show telemetry. */
export const PAGES = [
  { to: "/", name: "Overview", letter: "o", ranged: false, measured: true },
  { to: "/cost", name: "Cost", letter: "c", ranged: true, measured: true },
  { to: "/performance", name: "Performance", letter: "p", ranged: true, measured: true },
  { to: "/resources", name: "Resources", letter: "u", ranged: true, measured: true },
  { to: "/application", name: "Application", letter: "a", ranged: true, measured: true },
  { to: "/recommendations", name: "Recommendations", letter: "r", ranged: false, measured: true },
  { to: "/executions", name: "Executions", letter: "x", ranged: false, measured: true },
  { to: "/events", name: "Events & audit", letter: "e", ranged: true, measured: false },
  { to: "/settings", name: "Settings", letter: "s", ranged: false, measured: false },
] as const;

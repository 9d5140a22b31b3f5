/** Light, dark, or as the system is; `public/theme.js` has set it before the first paint. */
export type Theme = "light" | "dark" | "system";

const KEPT = "optiinfra.theme";
const dark = window.matchMedia("(prefers-color-scheme: dark)");

export function chosenTheme(): Theme {
  const kept = localStorage.getItem(KEPT);
  return kept === "light" || kept === "dark" ? kept : "system";
}

export function chooseTheme(theme: Theme): void {
  localStorage.setItem(KEPT, theme);
  show();
}

export function followTheme(): void {
  dark.addEventListener("change", show);
}

function show(): void {
  const theme = chosenTheme();
  document.documentElement.dataset["theme"] = theme === "system" ? (dark.matches ? "dark" : "light") : theme;
}

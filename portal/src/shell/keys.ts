/** The keyboard: letters act on what the page marks with `data-row`, `data-action`, `data-search`. */
import { useNavigate } from "@tanstack/react-router";
import { useEffect } from "react";
import type { Scope } from "../router";
import { PAGES } from "./pages";

const KEPT = "optiinfra.keys";

export function lettersAreOn(): boolean {
  return localStorage.getItem(KEPT) !== "off";
}

export function turnLetters(on: boolean): void {
  localStorage.setItem(KEPT, on ? "on" : "off");
}

function isTyping(target: EventTarget | null): boolean {
  if (!(target instanceof HTMLElement)) return false;
  // A dialog that was closed keeps the focus until the next frame.
  if (target.closest("dialog:not([open])")) return false;
  return target.matches("input, textarea, select, [contenteditable]");
}

function moveRow(by: number): void {
  const rows = [...document.querySelectorAll<HTMLElement>("[data-row]")];
  if (rows.length === 0) return;
  const focused = rows.findIndex((row) => row === document.activeElement);
  const chosen = focused >= 0 ? focused : rows.findIndex((row) => row.dataset["row"] === "chosen");
  const next = chosen < 0 ? 0 : Math.min(Math.max(chosen + by, 0), rows.length - 1);
  rows[next]?.focus();
  rows[next]?.scrollIntoView({ block: "nearest" });
}

function click(selector: string): void {
  document.querySelector<HTMLElement>(selector)?.click();
}

/** The chart that has the focus; all of the page where none has. */
function toggleTables(): void {
  const here = document.activeElement?.closest("section")?.querySelector<HTMLElement>("[data-action=table]");
  const all = document.querySelectorAll<HTMLElement>("[data-action=table]");
  for (const button of here ? [here] : all) button.click();
}

const ACTIONS: Record<string, () => void> = {
  j: () => moveRow(1),
  k: () => moveRow(-1),
  a: () => click("[data-action=approve]"),
  x: () => click("[data-action=reject]"),
  z: () => click("[data-action=snooze]"),
  t: toggleTables,
  "/": () => document.querySelector<HTMLElement>("[data-search]")?.focus(),
  Escape: () => click("[data-action=close]"),
};

export function useKeys(showHelp: () => void): void {
  const navigate = useNavigate();
  useEffect(() => {
    // "g" waits for its letter without a clock, so that a slow hand, or a busy machine, is served too.
    let leading = false;
    const pointed = () => {
      leading = false;
    };
    const pressed = (event: KeyboardEvent) => {
      const { key } = event;
      const led = leading;
      leading = false;
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (document.querySelector("dialog[open]") !== null) return;
      if (isTyping(event.target)) {
        // Escape leaves a field as it is: a search field would be emptied.
        if (key === "Escape") {
          (event.target as HTMLElement).blur();
          event.preventDefault();
        }
        return;
      }
      if (key !== "Escape" && !lettersAreOn()) return;
      const page = led && PAGES.find(({ letter }) => letter === key);
      leading = key === "g";
      if (page) void navigate({ to: page.to, search: keptScope });
      else if (key === "?") showHelp();
      else if (key in ACTIONS) ACTIONS[key]?.();
      else return;
      event.preventDefault();
    };
    window.addEventListener("keydown", pressed);
    window.addEventListener("pointerdown", pointed);
    return () => {
      window.removeEventListener("keydown", pressed);
      window.removeEventListener("pointerdown", pointed);
    };
  }, [navigate, showHelp]);
}

/** What stays when another page is opened. */
export function keptScope({ range, deployment }: Scope): Scope {
  return { ...(range && { range }), ...(deployment && { deployment }) };
}

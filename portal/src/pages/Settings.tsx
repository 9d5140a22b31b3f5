/** Who may do what, with which keys, under which policy, and who is told. */
import { useNavigate, useSearch } from "@tanstack/react-router";
import type { ReactNode } from "react";
import { SETTINGS, type Setting } from "../router";
import { Keys } from "../settings/Keys";
import { Notifications } from "../settings/Notifications";
import { People } from "../settings/People";
import { Policy } from "../settings/Policy";
import { classes } from "../ui/basics";

const VIEWS: Record<Setting, { name: string; Shown: () => ReactNode }> = {
  people: { name: "People", Shown: People },
  keys: { name: "Keys", Shown: Keys },
  policy: { name: "Policy", Shown: Policy },
  notifications: { name: "Notifications", Shown: Notifications },
};

export function Settings() {
  const { view: chosen = "people" } = useSearch({ from: "/settings" });
  const navigate = useNavigate({ from: "/settings" });
  const { Shown } = VIEWS[chosen];
  return (
    <div className="max-w-6xl space-y-4">
      <div role="group" aria-label="settings" className="flex flex-wrap gap-1">
        {SETTINGS.map((view) => (
          <button
            key={view}
            type="button"
            aria-pressed={view === chosen}
            onClick={() => void navigate({ search: (before) => ({ ...before, view }) })}
            className={classes(
              "rounded-md px-2 py-1 text-sm",
              view === chosen ? "bg-accent-soft font-semibold text-accent" : "text-muted hover:bg-raised",
            )}
          >
            {VIEWS[view].name}
          </button>
        ))}
      </div>
      <Shown />
    </div>
  );
}

/** Everything that was said, how it stood then, what might have been, and who did or tried what. */
import { useNavigate, useSearch } from "@tanstack/react-router";
import { AuditTable } from "../events/AuditTable";
import { EventTable } from "../events/EventTable";
import { Replay } from "../events/Replay";
import { WhatIf } from "../events/WhatIf";
import { classes } from "../ui/basics";

const VIEWS = [
  { view: undefined, name: "Event log", Shown: EventTable },
  { view: "replay", name: "Replay", Shown: Replay },
  { view: "what-if", name: "What if", Shown: WhatIf },
  { view: "audit", name: "Audit trail", Shown: AuditTable },
] as const;

export function Events() {
  const { view } = useSearch({ from: "/events" });
  const navigate = useNavigate({ from: "/events" });
  const { Shown } = VIEWS.find((one) => one.view === view) ?? VIEWS[0];
  return (
    <div className="flex h-full min-h-128 flex-col gap-3">
      <div role="group" aria-label="what" className="flex flex-wrap gap-1">
        {VIEWS.map(({ view: one, name }) => (
          <button
            key={name}
            type="button"
            aria-pressed={one === view}
            onClick={() =>
              void navigate({
                search: ({ view: _, event: __, ...rest }) => (one ? { ...rest, view: one } : rest),
              })
            }
            className={classes(
              "rounded-md px-2 py-1 text-sm",
              one === view ? "bg-accent-soft font-semibold text-accent" : "text-muted hover:bg-raised",
            )}
          >
            {name}
          </button>
        ))}
      </div>
      <Shown />
    </div>
  );
}

/** Everything that was said, and who did or tried what. */
import { useNavigate, useSearch } from "@tanstack/react-router";
import { AuditTable } from "../events/AuditTable";
import { EventTable } from "../events/EventTable";
import { classes } from "../ui/basics";

const VIEWS = ["events", "audit"] as const;

export function Events() {
  const { view } = useSearch({ from: "/events" });
  const navigate = useNavigate({ from: "/events" });
  const chosen = view ?? "events";
  return (
    <div className="flex h-full min-h-128 flex-col gap-3">
      <div role="group" aria-label="what" className="flex gap-1">
        {VIEWS.map((name) => (
          <button
            key={name}
            type="button"
            aria-pressed={name === chosen}
            onClick={() =>
              void navigate({
                search: ({ view: _, event: __, ...rest }) =>
                  name === "audit" ? { ...rest, view: name } : rest,
              })
            }
            className={classes(
              "rounded-md px-2 py-1 text-sm",
              name === chosen ? "bg-accent-soft font-semibold text-accent" : "text-muted hover:bg-raised",
            )}
          >
            {name === "events" ? "Event log" : "Audit trail"}
          </button>
        ))}
      </div>
      {chosen === "events" ? <EventTable /> : <AuditTable />}
    </div>
  );
}

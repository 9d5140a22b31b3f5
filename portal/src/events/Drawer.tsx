/** One event with its body, what caused it, and what it led to. */
import { Link } from "@tanstack/react-router";
import type { EventRow } from "../api/types";
import { dayAndClock } from "../format";
import { keptScope } from "../shell/keys";
import { Button, Facts, Raw, Skeleton } from "../ui/basics";
import { ProblemNote } from "../ui/problem";
import { Causes, useCauses } from "./Causes";
import { summaryOf } from "./words";

interface DrawerProps {
  event: EventRow;
  onClose: () => void;
  onChoose: (id: string) => void;
  onChange: (change: string) => void;
}

export function Drawer({ event, onClose, onChoose, onChange }: DrawerProps) {
  const { correlation } = event;
  return (
    <aside
      aria-label="event"
      className="max-h-full space-y-4 overflow-y-auto rounded-lg border border-line bg-panel p-4 lg:w-105"
      tabIndex={0}
    >
      <div className="flex items-start justify-between gap-2">
        <h2 className="font-semibold">{summaryOf(event.kind, event.fact)}</h2>
        <Button look="quiet" data-action="close" onClick={onClose}>
          Close
        </Button>
      </div>
      <Facts
        rows={[
          ["kind", <span className="font-mono text-xs">{event.kind}</span>],
          ["said", dayAndClock(event.said_at)],
          ["taken in", dayAndClock(event.at)],
          ["source", event.source],
          ["position", `${event.position} in the log, ${event.version} in its chain`],
          ["id", <span className="font-mono text-xs break-all">{event.id}</span>],
          ["hash", <span className="font-mono text-xs break-all">{event.hash}</span>],
        ]}
      />
      {correlation && (
        <p className="flex flex-wrap gap-2">
          <Button onClick={() => onChange(correlation)}>Only this change</Button>
          <Link
            to="/events"
            search={(before) => ({ ...keptScope(before), view: "replay", change: correlation })}
            className="self-center text-accent underline"
          >
            Replay it
          </Link>
          <Link
            to="/executions"
            search={(before) => ({ ...keptScope(before), id: correlation })}
            className="self-center text-accent underline"
          >
            Its execution
          </Link>
        </p>
      )}
      <Causes id={event.id} onChoose={onChoose} />
      <div>
        <h3 className="mb-1 text-xs font-semibold tracking-wide text-muted uppercase">Body</h3>
        <Raw value={event.fact} open />
      </div>
    </aside>
  );
}

/** An event that is not among those that were read: another range's, or further than was read. */
export function FarDrawer({ id, ...rest }: Omit<DrawerProps, "event"> & { id: string }) {
  const query = useCauses(id);
  const event = query.data?.items.find((row) => row.id === id);
  if (event) return <Drawer event={event} {...rest} />;
  return (
    <aside aria-label="event" className="space-y-4 rounded-lg border border-line bg-panel p-4 lg:w-105">
      <Button look="quiet" data-action="close" onClick={rest.onClose}>
        Close
      </Button>
      {query.isError ? <ProblemNote error={query.error} /> : <Skeleton lines={8} />}
    </aside>
  );
}

/** One event with its body, what caused it, and what it led to. */
import { Link } from "@tanstack/react-router";
import type { EventRow } from "../api/types";
import { clock, dayAndClock } from "../format";
import { keptScope } from "../shell/keys";
import { Button, Facts, Raw } from "../ui/basics";
import { summaryOf } from "./words";

interface DrawerProps {
  event: EventRow;
  log: EventRow[];
  onClose: () => void;
  onChoose: (id: string) => void;
  onChange: (change: string) => void;
}

const DEEPEST = 30;

/** From the first cause that is known here down to the event's own. */
function causesOf(event: EventRow, log: EventRow[]): EventRow[] {
  const byId = new Map(log.map((row) => [row.id, row]));
  const found: EventRow[] = [];
  let cause = event.causation ? byId.get(event.causation) : undefined;
  while (cause && found.length < DEEPEST && !found.includes(cause)) {
    found.unshift(cause);
    cause = cause.causation ? byId.get(cause.causation) : undefined;
  }
  return found;
}

export function Drawer({ event, log, onClose, onChoose, onChange }: DrawerProps) {
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
            to="/executions"
            search={(before) => ({ ...keptScope(before), id: correlation })}
            className="self-center text-accent underline"
          >
            Its execution
          </Link>
        </p>
      )}
      <Chain title="Because of" rows={causesOf(event, log)} none={event.causation ? "Its cause lies outside this range." : "Nothing caused it: it began here."} onChoose={onChoose} />
      <Chain title="Led to" rows={log.filter((row) => row.causation === event.id)} none="Nothing, so far." onChoose={onChoose} />
      <div>
        <h3 className="mb-1 text-xs font-semibold tracking-wide text-muted uppercase">Body</h3>
        <Raw value={event.fact} open />
      </div>
    </aside>
  );
}

interface ChainProps {
  title: string;
  rows: EventRow[];
  none: string;
  onChoose: (id: string) => void;
}

function Chain({ title, rows, none, onChoose }: ChainProps) {
  return (
    <section>
      <h3 className="mb-1 text-xs font-semibold tracking-wide text-muted uppercase">{title}</h3>
      {rows.length === 0 && <p className="text-muted">{none}</p>}
      <ol className="space-y-1">
        {rows.map((row) => (
          <li key={row.id}>
            <button
              type="button"
              onClick={() => onChoose(row.id)}
              className="w-full rounded-md px-2 py-1 text-left hover:bg-raised"
            >
              <span className="font-mono text-xs text-muted">{clock(row.at)}</span>{" "}
              {summaryOf(row.kind, row.fact)}
            </button>
          </li>
        ))}
      </ol>
    </section>
  );
}

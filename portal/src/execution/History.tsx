/** Everything that was said about a change, in three depths. */
import { useState } from "react";
import type { ChangeDetail, EventRow } from "../api/types";
import { summaryOf } from "../events/words";
import { clock, dayAndClock } from "../format";
import { classes, Raw } from "../ui/basics";

const DEPTHS = ["short", "all events", "with bodies"] as const;
type Depth = (typeof DEPTHS)[number];

const MILESTONES = [
  "recommendation.proposed", "approval.requested", "approval.granted", "approval.denied",
  "execution.staged", "execution.failed", "gate.closed", "rollback.requested", "rollback.completed",
  "quality.regressed", "conflict.resolved", "outcome.recorded", "control.requested",
];

function isMilestone({ kind }: EventRow): boolean {
  return MILESTONES.includes(kind) || kind.startsWith("change.") || kind.startsWith("recommendation.");
}

export function History({ change }: { change: ChangeDetail }) {
  const [depth, setDepth] = useState<Depth>("short");
  const shown = depth === "short" ? change.timeline.filter(isMilestone) : change.timeline;
  return (
    <>
      <div role="group" aria-label="depth" className="mb-2 flex gap-1">
        {DEPTHS.map((name) => (
          <button
            key={name}
            type="button"
            aria-pressed={name === depth}
            onClick={() => setDepth(name)}
            className={classes(
              "rounded-md px-2 py-1 text-sm",
              name === depth ? "bg-accent-soft font-semibold text-accent" : "text-muted hover:bg-raised",
            )}
          >
            {name}
          </button>
        ))}
      </div>
      <ol className="space-y-1">
        {shown.map((event) => (
          <li key={event.id} className="grid grid-cols-[auto_1fr] gap-x-3">
            <time dateTime={event.at} title={dayAndClock(event.at)} className="font-mono text-xs leading-6 text-muted">
              {clock(event.at)}
            </time>
            <div className="min-w-0 break-words">
              {summaryOf(event.kind, event.fact)}
              {depth !== "short" && (
                <span className="text-xs text-muted">
                  {" "}
                  {event.kind} from {event.source}
                </span>
              )}
              {depth === "with bodies" && <Raw value={event.fact} label="body" />}
            </div>
          </li>
        ))}
      </ol>
    </>
  );
}

/** Whether what is shown is current, and as of when. */
import { clock, UNKNOWN } from "../format";
import { useLive } from "../live/context";
import type { Status } from "../live/stream";
import { Badge, type Tone } from "../ui/basics";

const SHOWN: Record<Status, [string, Tone]> = {
  connecting: ["Connecting", "plain"],
  live: ["Live", "good"],
  reconnecting: ["Reconnecting", "warn"],
  disconnected: ["Disconnected", "bad"],
};

export function Connection() {
  const { status, asOf, gaps, resumed } = useLive();
  const [name, tone] = SHOWN[status];
  return (
    <div
      data-status={status}
      data-gaps={gaps}
      data-resumed={resumed}
      data-connection=""
      className="flex items-center gap-2 text-xs"
    >
      <span role="status">
        <Badge tone={tone}>{name}</Badge>
      </span>
      <span className="whitespace-nowrap text-muted">
        <span className="sr-only sm:not-sr-only">data as of</span> <time>{asOf === null ? UNKNOWN : clock(asOf)}</time>
      </span>
    </div>
  );
}

/** Why nothing can be decided while the pages may be out of date; null while they are live. */
export function useStaleReason(): string | null {
  const { status, asOf } = useLive();
  if (status === "live") return null;
  const as = asOf === null ? "" : ` (data as of ${clock(asOf)})`;
  return `not connected${as}: what is shown may have changed`;
}

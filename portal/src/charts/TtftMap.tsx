/** How fast requests got their first token, over time. */
import type { TtftMap as Found } from "../api/types";
import { count, seconds, UNKNOWN } from "../format";
import { useSnapshot } from "../live/context";
import { RANGE_MS, type Range } from "../shell/scope";
import { Empty, Panel } from "../ui/basics";
import { Shown } from "../ui/problem";
import { ChartPanel } from "./ChartPanel";
import type { Marker } from "./charts";
import { boundOf, HeatMap, peakOf, strength, timeIn } from "./HeatMap";

const OFTEN_MS = 15_000;
const SELDOM_MS = 60_000;
const COLUMNS = 60;
const TITLE = "TTFT heat map";
const LEGEND = 5;

interface TtftMapProps {
  deployment: string;
  range: Range;
  markers: Marker[];
}

export function TtftMap({ deployment, range, markers }: TtftMapProps) {
  const path = `/deployments/${deployment}/ttft?window_s=${RANGE_MS[range] / 1_000}`;
  const every = Math.min(SELDOM_MS, Math.max(OFTEN_MS, RANGE_MS[range] / COLUMNS));
  const query = useSnapshot<Found>(["ttft", deployment], path, { every });
  return (
    <Shown query={query} lines={1} height="h-96">
      {(found) => <Shape found={found} markers={markers} />}
    </Shown>
  );
}

function Shape({ found, markers }: { found: Found; markers: Marker[] }) {
  if (found.rows.length === 0) {
    const dark = found.columns.every(({ counts }) => counts === null);
    return (
      <Panel title={TITLE}>
        <Empty
          why={dark ? "Not known: nothing was measured in this range." : "No request was answered in this range."}
          next="It shows once an engine tells of requests: choose a longer range, or send some."
        />
      </Panel>
    );
  }
  const time = timeIn(found);
  return (
    <ChartPanel
      title={TITLE}
      about={<Legend found={found} />}
      size="h-72"
      head={["from", "requests", ...found.rows.map(boundOf)]}
      rows={found.columns.map(({ at, counts, unread, reason }) => [
        time(at),
        counts === null ? `${UNKNOWN} (${reason ?? "unknown"})` : `${count(sum(counts))}${unread > 0 ? ` at least: ${unread} scrapes failed` : ""}`,
        ...found.rows.map((_, place) => count(counts?.[place])),
      ])}
    >
      <HeatMap found={found} markers={markers} />
    </ChartPanel>
  );
}

function sum(counts: number[]): number {
  return counts.reduce((total, one) => total + one, 0);
}

function Legend({ found }: { found: Found }) {
  const peak = peakOf(found);
  const steps = [...new Set(Array.from({ length: LEGEND }, (_, step) => Math.round(peak ** (step / (LEGEND - 1)))))];
  return (
    <span className="flex flex-wrap items-center gap-x-4 gap-y-1">
      <span className="flex items-center gap-1">
        requests in {seconds(found.column_s)}:
        {steps.map((requests) => (
          <span key={requests} className="flex items-center gap-1 text-ink">
            <svg width="14" height="14" aria-hidden="true">
              <rect width="14" height="14" fill="var(--accent)" fillOpacity={strength(requests, peak)} />
            </svg>
            {count(requests)}
          </span>
        ))}
      </span>
      <span>hatched: not known · plain: no request · - - - objective {seconds(found.objective_s)} for 95 % of requests</span>
      {found.simulated && <span>part of it is simulated</span>}
    </span>
  );
}

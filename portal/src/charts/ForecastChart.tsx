/** What load was forecast, each time before it came, and what came. */
import type { Forecasts } from "../api/types";
import { clock, count, dayAndClock, measured, percent, seconds, UNKNOWN } from "../format";
import { useSnapshot } from "../live/context";
import { windowOf, type Range } from "../shell/scope";
import { Empty, Panel } from "../ui/basics";
import { Shown } from "../ui/problem";
import { ChartPanel } from "./ChartPanel";
import { Band } from "./lazy";

const EVERY_MS = 15_000;
const GAP = 2.5;
const TITLE = "Load: forecast against what came";

export function ForecastChart({ deployment, range }: { deployment: string; range: Range }) {
  const path = `/deployments/${deployment}/forecast?window_s=${windowOf(range)}`;
  const query = useSnapshot<Forecasts>(["forecast", deployment], path, { every: EVERY_MS });
  return (
    <Shown query={query} lines={1} height="h-80">
      {(found) => <Shape found={found} />}
    </Shown>
  );
}

type Point = Forecasts["points"][number];

function Shape({ found }: { found: Forecasts }) {
  const known = found.points.filter(({ high_rps: high }) => high !== null);
  if (known.length === 0) {
    return (
      <Panel title={TITLE}>
        <Empty why={whyNone(found)} next="The resource agent records a forecast a minute, of the time ahead; none is ever made afterwards." />
      </Panel>
    );
  }
  return (
    <ChartPanel
      title={TITLE}
      about={<Notes found={found} />}
      size="h-64"
      head={["made", "peak up to", "expected", "with head-room", "came", "held"]}
      rows={found.points.map((point) => [
        clock(point.made_at),
        clock(point.due_at),
        point.expected_rps === null ? `${UNKNOWN} (${point.reason ?? "unknown"})` : rate(point.expected_rps),
        rate(point.high_rps),
        point.came_rps === null ? `${UNKNOWN} (${point.came_reason ?? "unknown"})` : rate(point.came_rps),
        point.held === null ? UNKNOWN : point.held ? "✓ yes" : "✕ no",
      ])}
    >
      <Band data={broken(found.points.map(drawn))} told={rate} />
    </ChartPanel>
  );
}

function rate(value: number | null): string {
  return measured(value, "per_s");
}

/** A forecast stands at the end of the time that it is about. */
function drawn({ due_at, expected_rps: low, high_rps: high, came_rps: came, held }: Point) {
  return {
    at: new Date(due_at).getTime(),
    band: low === null || high === null ? null : ([low, high] as [number, number]),
    came,
    over: held === false ? came : null,
  };
}

type Drawn = ReturnType<typeof drawn>;

/** With a break wherever forecasts are missing: nothing is drawn across it. */
function broken(points: Drawn[]): (Drawn | { at: number; band: null; came: null; over: null })[] {
  const steps = points.slice(1).map(({ at }, place) => at - (points[place]?.at ?? at));
  const usual = [...steps].sort((one, other) => one - other)[Math.floor(steps.length / 2)] ?? 0;
  return points.flatMap((point, place) => {
    const step = steps[place] ?? 0;
    return step > GAP * usual ? [point, { at: point.at + 1, band: null, came: null, over: null }] : [point];
  });
}

function whyNone({ recorded_since: first, points }: Forecasts): string {
  if (first === null) return "No forecast has been recorded of this deployment yet.";
  const reason = points.findLast((point) => point.reason !== null)?.reason;
  const since = `forecasts are recorded since ${dayAndClock(first)}`;
  return reason ? `No forecast could be made in this range: ${reason} (${since}).` : `None was made in this range: ${since}.`;
}

function Notes({ found }: { found: Forecasts }) {
  const { over, held, aims_at: aims, horizon_s: horizon, recorded_since: first, method } = found;
  return (
    <>
      <p>
        {over === 0 ? "The time of no forecast here is over yet" : `${count(held)} of ${count(over)} forecasts held (${percent(held / over)})`}
        {aims !== null && `; they aim at ${percent(aims)}`}. Each is of the highest load of the next {seconds(horizon)}
        {method && `, by ${method}`}, and stands where that time ends.
      </p>
      {first !== null && <p>Recorded as they were made, since {dayAndClock(first)}.</p>}
    </>
  );
}

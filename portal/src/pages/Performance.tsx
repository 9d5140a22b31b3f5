/** Whether requests are served within their objectives, and what moved when we changed something. */
import type { Metric, Objective, Performance as Figures } from "../api/figures";
import type { ChangeRow, Page } from "../api/types";
import type { Marker } from "../charts/charts";
import { SeriesChart, type Part } from "../charts/SeriesChart";
import { TtftMap } from "../charts/TtftMap";
import { count, figure, measured, percent, UNKNOWN, words } from "../format";
import { useSnapshot } from "../live/context";
import { RANGE_MS, useScope, windowOf, type Range } from "../shell/scope";
import { Badge, Panel, Skeleton } from "../ui/basics";
import { OfDeployment, Tile } from "../ui/figures";
import { ProblemNote, Shown } from "../ui/problem";
import { Table } from "../ui/table";

const EVERY_MS = 15_000;
const QUANTILES = ["p50", "p95", "p99"];
const SHOWN = [
  "ttft_s", "tpot_s", "e2e_s", "queue_time_s", "requests_per_s", "requests_running", "requests_waiting",
  "prompt_tokens_per_s", "generation_tokens_per_s", "prefix_cache_hit_fraction", "preemptions_per_s", "errors_per_s",
];
const NAMES: Record<string, string> = {
  ttft_s: "Time to first token (TTFT)",
  tpot_s: "Time per output token (TPOT)",
  e2e_s: "End to end",
  queue_time_s: "Queue time",
  prompt_tokens_per_s: "Prefill, prompt tokens/s",
  generation_tokens_per_s: "Decode, output tokens/s",
};

export function nameOf(metric: string): string {
  return NAMES[metric] ?? words(metric).replace(/^./, (first) => first.toUpperCase());
}

export function Performance() {
  return <OfDeployment>{(deployment) => <OfOne key={deployment} deployment={deployment} />}</OfDeployment>;
}

function OfOne({ deployment }: { deployment: string }) {
  const { range } = useScope();
  const path = `/deployments/${deployment}/performance?window_s=${windowOf(range)}`;
  const query = useSnapshot<Figures>(["performance", deployment], path, { every: EVERY_MS });
  const markers = useMarkers(deployment, range);
  return (
    <div className="space-y-4">
      <Shown query={query} lines={2} height="h-24">
        {(found) => <Objectives found={found} />}
      </Shown>
      <TtftMap deployment={deployment} range={range} markers={markers} />
      <Charts deployment={deployment} range={range} markers={markers} objectives={query.data?.objectives} />
      {query.data && <Levels found={query.data} />}
    </div>
  );
}

function Objectives({ found }: { found: Figures }) {
  const { ttft, tpot, errors, goodput, met } = found.objectives;
  return (
    <div className="space-y-3">
      <p className="flex flex-wrap items-center gap-2">
        <strong>{found.deployment}</strong> serves {found.model}:{" "}
        <Badge tone={met === null ? "warn" : met ? "good" : "bad"}>
          {met === null ? "objectives not known" : met ? "objectives met" : "objectives missed"}
        </Badge>
      </p>
      <div className="grid grid-cols-2 gap-3 lg:grid-cols-4">
        <ObjectiveTile name="TTFT p95" of={ttft} />
        <ObjectiveTile name="TPOT p95" of={tpot} />
        <ObjectiveTile name="Errors" of={errors} />
        <Tile
          name="Goodput"
          value={goodput.low === null || goodput.high === null ? UNKNOWN : `${percent(goodput.low, 1)} to ${percent(goodput.high, 1)}`}
        >
          {goodput.reason ?? "requests within every objective"}
        </Tile>
      </div>
    </div>
  );
}

function ObjectiveTile({ name, of }: { name: string; of: Objective }) {
  const { observed, objective, unit, met, requests } = of;
  const said = met === null ? "" : met ? ", met" : ", missed";
  return (
    <Tile name={name} value={measured(observed.value, observed.unit)}>
      {observed.value === null ? `${observed.reason ?? "unknown"} · ` : ""}
      at most {measured(objective, unit)}
      {said}
      {requests !== null && ` · ${count(requests)} requests`}
    </Tile>
  );
}

interface ChartsProps {
  deployment: string;
  range: Range;
  markers: Marker[];
  objectives: Figures["objectives"] | undefined;
}

/** Our finished changes of this deployment, to be drawn where they moved. */
function useMarkers(deployment: string, range: Range): Marker[] {
  const changes = useSnapshot<Page<ChangeRow>>(["changes"], `/changes?limit=50&deployment=${deployment}`);
  const begin = Date.now() - RANGE_MS[range];
  return (changes.data?.items ?? [])
    .filter(({ state }) => state === "completed" || state === "rolled_back")
    .map((row) => ({ at: new Date(row.updated_at).getTime(), name: `${words(row.kind)} ${words(row.state)}` }))
    .filter(({ at }) => at > begin);
}

function Charts({ deployment, range, markers, objectives }: ChartsProps) {
  const metrics = useSnapshot<{ items: Metric[] }>(["metrics"], "/metrics");
  if (metrics.data === undefined) {
    return metrics.isError ? <ProblemNote error={metrics.error} /> : <Skeleton lines={2} height="h-56" />;
  }
  const known = new Map(metrics.data.items.map((one) => [one.metric, one]));
  const limits: Record<string, Objective | undefined> = { ttft_s: objectives?.ttft, tpot_s: objectives?.tpot };
  return (
    <div className="grid items-start gap-4 lg:grid-cols-2">
      {SHOWN.flatMap((metric) => known.get(metric) ?? []).map((one) => {
        const limit = limits[one.metric];
        return (
          <SeriesChart
            key={one.metric}
            title={nameOf(one.metric)}
            deployment={deployment}
            parts={partsOf(one)}
            range={range}
            markers={markers}
            limit={limit && { value: limit.objective, name: `objective ${measured(limit.objective, limit.unit)}` }}
          />
        );
      })}
    </div>
  );
}

/** All three quantiles where there are some, else what the metric is folded by. */
function partsOf({ metric, aggs }: Metric): Part[] {
  const quantiles = QUANTILES.filter((agg) => aggs.includes(agg));
  if (quantiles.length > 0) return quantiles.map((agg) => ({ metric, agg, name: agg }));
  return [{ metric, name: words(metric) }];
}

function Levels({ found }: { found: Figures }) {
  return (
    <Panel title="In numbers">
      <div className="space-y-4">
        <Table
          label="latencies"
          head={["latency", "p50", "p95", "p99", "objective", ""]}
          rows={found.latencies.map((one) => [
            nameOf(one.metric),
            figure(one.window.p50),
            figure(one.window.p95),
            figure(one.window.p99),
            measured(one.objective_s, "s"),
            one.exact ? "over all requests" : "of the slowest replica: an upper bound",
          ])}
        />
        <Table
          label="levels"
          head={["what", "now", "mean of the range"]}
          rows={found.levels.map((one) => [nameOf(one.metric), figure(one.latest), figure(one.window)])}
        />
      </div>
    </Panel>
  );
}

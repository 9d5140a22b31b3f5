/** Some measures of one deployment over time, in one chart. */
import { useQueries } from "@tanstack/react-query";
import { call } from "../api/client";
import type { Series } from "../api/figures";
import { clock, measured } from "../format";
import { RANGE_MS, type Range } from "../shell/scope";
import { Empty, Skeleton } from "../ui/basics";
import { ProblemNote } from "../ui/problem";
import { Panel } from "../ui/basics";
import { ChartPanel } from "./ChartPanel";
import type { Marker } from "./charts";
import { Lines } from "./lazy";

const EVERY_MS = 15_000;
const POINTS = 120;

export interface Part {
  metric: string;
  agg?: string;
  name: string;
}

interface SeriesChartProps {
  title: string;
  deployment: string;
  parts: Part[];
  range: Range;
  by?: "replica" | "gpu";
  limit?: { value: number; name: string } | undefined;
  markers?: Marker[];
}

function address(deployment: string, { metric, agg }: Part, range: Range, by?: string): string {
  const from = new Date(Date.now() - RANGE_MS[range]).toISOString();
  const asked = new URLSearchParams({ deployment, metric, from, points: String(POINTS) });
  if (agg) asked.set("agg", agg);
  if (by) asked.set("by", by);
  return `/series?${asked.toString()}`;
}

export function SeriesChart({ title, deployment, parts, range, by, limit, markers }: SeriesChartProps) {
  const found = useQueries({
    queries: parts.map((part) => ({
      queryKey: ["series", deployment, part.metric, part.agg ?? "", range, by ?? ""],
      refetchInterval: EVERY_MS,
      queryFn: async () => (await call<Series>(address(deployment, part, range, by))).data,
    })),
  });
  const failed = found.find((query) => query.isError && query.data === undefined);
  if (failed) {
    return (
      <Panel title={title}>
        <ProblemNote error={failed.error} />
      </Panel>
    );
  }
  const { data, names, unit } = joined(parts, found.map((query) => query.data));
  if (found.some((query) => query.data === undefined)) {
    return (
      <Panel title={title}>
        <Skeleton lines={1} height="h-48" />
      </Panel>
    );
  }
  if (names.length === 0) {
    return (
      <Panel title={title}>
        <div className="h-48">
          <Empty why="Not known: nothing was measured in this range." next="It shows once an engine tells it." />
        </div>
      </Panel>
    );
  }
  const told = (value: number) => measured(value, unit);
  return (
    <ChartPanel
      title={title}
      head={["time", ...names]}
      rows={data.map((point) => [
        clock(Number(point["at"])),
        ...names.map((name) => measured(point[name], unit)),
      ])}
    >
      <Lines data={data} names={names} told={told} limit={limit} {...(markers && { markers })} />
    </ChartPanel>
  );
}

type Points = Record<string, number | null>[];

/** One row a step with a column for each line; steps of all answers are put on one time axis. */
function joined(parts: Part[], answers: (Series | undefined)[]): { data: Points; names: string[]; unit: string } {
  const byTime = new Map<number, Record<string, number | null>>();
  const names: string[] = [];
  let unit = "count";
  answers.forEach((answer, number) => {
    const part = parts[number];
    if (!answer || !part) return;
    unit = answer.unit;
    const begin = Math.round(new Date(answer.since).getTime() / 1_000);
    for (const { of, values } of answer.series) {
      const name = of === null ? part.name : parts.length > 1 ? `${part.name} of ${of}` : of;
      names.push(name);
      values.forEach((value, step) => {
        const at = (begin + step * answer.step_s) * 1_000;
        byTime.set(at, { ...(byTime.get(at) ?? { at }), [name]: value });
      });
    }
  });
  const data = [...byTime.values()].sort((a, b) => Number(a["at"]) - Number(b["at"]));
  return { data, names, unit };
}

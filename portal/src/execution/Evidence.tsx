/** Candidate against baseline, look by look, with the interval of their difference. */
import { lazy, useState } from "react";
import type { ChangeDetail } from "../api/types";
import { measured } from "../format";
import { Button, Panel } from "../ui/basics";
import { Fetched, fetched } from "../ui/fetched";
import { Table } from "../ui/table";

const Chart = lazy(() => fetched(() => import("./EvidenceChart")));

export interface Point {
  name: string;
  candidate: number | null;
  baseline: number | null;
  difference: [number, number] | null;
}

/** One point a look that has evidence on the answers' quality, in their order. */
export function pointsOf({ stages }: ChangeDetail): Point[] {
  return stages.flatMap(({ stage, looks }) =>
    looks.flatMap(({ look, answers }) =>
      answers.flatMap(({ quality }) => {
        if (!quality) return [];
        const { difference_low: low, difference_high: high } = quality;
        return [
          {
            name: `stage ${stage + 1}, look ${look}`,
            candidate: quality.mean_canary ?? null,
            baseline: quality.mean_baseline ?? null,
            difference: typeof low === "number" && typeof high === "number" ? ([low, high] as [number, number]) : null,
          },
        ];
      }),
    ),
  );
}

export function Evidence({ change }: { change: ChangeDetail }) {
  const [asTable, setAsTable] = useState(false);
  const points = pointsOf(change);
  if (points.length === 0) return null;
  return (
    <Panel
      title="Quality of answers: candidate against baseline"
      aside={
        <Button look="quiet" data-action="table" onClick={() => setAsTable(!asTable)}>
          {asTable ? "As a chart" : "As a table"}
        </Button>
      }
    >
      {asTable ? (
        <Table
          label="quality look by look"
          head={["look", "candidate, score", "baseline, score", "difference, score"]}
          rows={points.map(({ name, candidate, baseline, difference }) => [
            name,
            measured(candidate, "score"),
            measured(baseline, "score"),
            difference ? `${measured(difference[0], "score")} to ${measured(difference[1], "score")}` : "–",
          ])}
        />
      ) : (
        <Fetched height="h-56">
          <Chart points={points} />
        </Fetched>
      )}
    </Panel>
  );
}

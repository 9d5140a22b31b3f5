/** Whether answers are as good as they were, and what the gates have said of it. */
import { Link } from "@tanstack/react-router";
import type { AnswerRow, GateRow, Quality } from "../api/figures";
import type { Page } from "../api/types";
import { SeriesChart } from "../charts/SeriesChart";
import { count, figure, measured, percent, UNKNOWN, words } from "../format";
import { useSnapshot } from "../live/context";
import { keptScope } from "../shell/keys";
import { useScope, windowOf } from "../shell/scope";
import { Ago, Badge, Empty, Panel } from "../ui/basics";
import { OfDeployment, Tile } from "../ui/figures";
import { Shown } from "../ui/problem";
import { VerdictBadge } from "../ui/states";
import { Table } from "../ui/table";

const EVERY_MS = 15_000;

export function Application() {
  return <OfDeployment>{(deployment) => <OfOne key={deployment} deployment={deployment} />}</OfDeployment>;
}

function OfOne({ deployment }: { deployment: string }) {
  const { range } = useScope();
  const base = `/deployments/${deployment}`;
  const quality = useSnapshot<Quality>(["events", "quality", deployment], `${base}/quality?window_s=${windowOf(range)}`, { every: EVERY_MS });
  const gates = useSnapshot<Page<GateRow>>(["changes", "gates", deployment], `${base}/gates?limit=50`);
  const answers = useSnapshot<Page<AnswerRow>>(["answers", deployment], `${base}/answers?limit=50`, { every: EVERY_MS });
  return (
    <div className="space-y-4">
      <Shown query={quality} lines={2} height="h-24">
        {(found) => <Scores found={found} />}
      </Shown>
      <SeriesChart
        title="Score of answers"
        deployment={deployment}
        parts={[
          { metric: "answer_score", name: "answers, score" },
          { metric: "quality_baseline", name: "golden baseline, score" },
        ]}
        range={range}
      />
      <Panel title="Gates: what the assessors said">
        <Shown query={gates} lines={4}>
          {({ items }) => <Gates rows={items} />}
        </Shown>
      </Panel>
      <Panel title="The latest scored answers">
        <Shown query={answers} lines={4}>
          {({ items }) => <Answers rows={items} />}
        </Shown>
      </Panel>
    </div>
  );
}

function Scores({ found }: { found: Quality }) {
  const { baseline, floor, answers } = found;
  return (
    <div className="grid grid-cols-1 gap-3 sm:grid-cols-2 lg:grid-cols-4">
      <Tile name="Baseline" value={measured(baseline?.mean, "score")}>
        {baseline ? (
          <>
            ± {measured(baseline.stdev, "score")} (one answer) · {count(baseline.units)} units · {baseline.scorer},{" "}
            <Ago at={baseline.at} />
          </>
        ) : (
          "no baseline has been measured yet"
        )}
      </Tile>
      <Tile name="Rolled back at" value={`−${percent(floor.max_relative_drop, 1)}`}>
        a relative drop · wrongly at most {percent(floor.alpha)} of the time, missed at most {percent(floor.beta)}
      </Tile>
      {answers.map((one) => (
        <Tile key={one.source} name={`${one.source} answers`} value={measured(one.mean.value, one.mean.unit)}>
          {one.mean.reason && `${one.mean.reason} · `}
          {count(one.scored)} of {count(one.count)} scored · {count(one.failed)} failed · {count(one.refused)} refused
        </Tile>
      ))}
    </div>
  );
}

function Gates({ rows }: { rows: GateRow[] }) {
  if (rows.length === 0) return <Empty why="No gate has been answered yet." next="They are asked while a change rolls out." />;
  return (
    <Table
      label="gates, the latest first"
      head={["when", "change", "assessor", "stage", "look", "verdict", "candidate − baseline, score", "pairs", "reason"]}
      rows={rows.map(({ at, change, answer }) => [
        <Ago key="at" at={at} />,
        <Link
          key="change"
          to="/executions"
          search={(before) => ({ ...keptScope(before), id: change })}
          className="font-mono text-xs text-accent underline"
        >
          {change.slice(0, 8)}
        </Link>,
        answer.assessor,
        answer.stage + 1,
        answer.look,
        <VerdictBadge key="verdict" verdict={answer.verdict} />,
        answer.quality
          ? `${measured(answer.quality.difference_low, "score")} to ${measured(answer.quality.difference_high, "score")}`
          : UNKNOWN,
        count(answer.quality?.pairs),
        answer.reason,
      ])}
    />
  );
}

function Answers({ rows }: { rows: AnswerRow[] }) {
  if (rows.length === 0) return <Empty why="No answer has been scored yet." next="Golden prompts are asked from the start; live answers are sampled." />;
  return (
    <>
      <Table
        label="scored answers, the latest first"
        head={["when", "replica", "score", "source", "kind of work", "state"]}
        rows={rows.map((one) => [
          <Ago key="at" at={one.at} />,
          one.replica,
          figure(one.score),
          one.source,
          one.stratum,
          <Badge key="state" tone={one.ok && !one.refusal ? "good" : "warn"}>
            {one.refusal ? "refused" : one.ok ? "answered" : words(one.fault ?? "failed")}
          </Badge>,
        ])}
      />
      <p className="mt-2 text-xs text-muted">Texts are not kept: only their scores are.</p>
    </>
  );
}

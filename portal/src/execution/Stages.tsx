/** The rollout as steps: each stage with the looks of its gate, and what every metric showed. */
import type { ChangeDetail, GateAnswer, GateMetric, Look, Stage } from "../api/types";
import { count, measured, metricName, percent, reading, seconds, words } from "../format";
import { Ago, Badge, classes, type Tone } from "../ui/basics";
import { VerdictBadge } from "../ui/states";
import { Table } from "../ui/table";

const OF_STATUS: Record<Stage["status"], Tone> = {
  pending: "plain", applying: "accent", in_force: "accent", passed: "good", failed: "bad",
};

export function Stages({ change }: { change: ChangeDetail }) {
  return (
    <ol className="space-y-4">
      {change.stages.map((stage) => (
        <li
          key={stage.stage}
          className={classes(
            "border-l-4 pl-4",
            stage.status === "failed" ? "border-bad" : stage.status === "passed" ? "border-good" : "border-line",
          )}
        >
          <h3 className="flex flex-wrap items-center gap-2 font-medium">
            Stage {stage.stage + 1}: {percent(stage.share)} of the traffic
            <Badge tone={OF_STATUS[stage.status]}>{words(stage.status)}</Badge>
            <span className="text-xs font-normal text-muted">
              soaks {seconds(stage.soak_s)}
              {stage.in_force_at && (
                <>
                  {" "}
                  · in force <Ago at={stage.in_force_at} />
                </>
              )}
            </span>
          </h3>
          <Looks looks={stage.looks} />
        </li>
      ))}
    </ol>
  );
}

/** The last look open, the ones before it closed. */
function Looks({ looks }: { looks: Look[] }) {
  if (looks.length === 0) return <p className="text-muted">Its gate has not been asked yet.</p>;
  return (
    <div className="mt-2 space-y-2">
      {[...looks].reverse().map((look, place) => (
        <details key={look.look} open={place === 0} className="rounded-md border border-line p-2">
          <summary className="flex flex-wrap items-center gap-2">
            Look {look.look} <VerdictBadge verdict={look.verdict} />
            {look.closed_at && (
              <span className="text-xs text-muted">
                <Ago at={look.closed_at} />
              </span>
            )}
            {look.answers.length === 0 && (
              <span className="min-w-0 text-sm text-muted">{look.reasons.join("; ")}</span>
            )}
          </summary>
          <div className="mt-2 space-y-3">
            {look.answers.length === 0 && <p className="text-muted">No assessor has answered yet.</p>}
            {look.answers.map((answer) => (
              <Answer key={answer.assessor} answer={answer} />
            ))}
          </div>
        </details>
      ))}
    </div>
  );
}

function Answer({ answer }: { answer: GateAnswer }) {
  return (
    <div>
      <p className="flex flex-wrap items-center gap-2">
        <strong>{answer.assessor}</strong> <VerdictBadge verdict={answer.verdict} /> {answer.reason}
      </p>
      {answer.metrics.length > 0 && (
        <Table
          label={`metrics of ${answer.assessor}`}
          head={["metric", "observed", "threshold", "window", "samples", "verdict"]}
          rows={answer.metrics.map(metricRow)}
        />
      )}
      {answer.quality && (
        <p className="text-sm text-muted">
          quality: candidate {measured(answer.quality.mean_canary, "score")}, baseline{" "}
          {measured(answer.quality.mean_baseline, "score")}, difference{" "}
          {measured(answer.quality.difference_low, "score")} to{" "}
          {measured(answer.quality.difference_high, "score")} over {count(answer.quality.pairs)} pairs ·
          evidence to promote {answer.quality.e_promote.toPrecision(3)} (needs{" "}
          {(1 / answer.quality.beta).toPrecision(3)}), to roll back{" "}
          {answer.quality.e_rollback.toPrecision(3)} (needs {(1 / answer.quality.alpha).toPrecision(3)})
        </p>
      )}
    </div>
  );
}

function metricRow(metric: GateMetric) {
  return [
    <span key="metric" className="block max-w-prose min-w-48">
      {metricName(metric.name)}
      <span className="block text-xs text-muted">{metric.detail}</span>
    </span>,
    reading(metric.observed, metric.unit),
    measured(metric.threshold, metric.unit),
    seconds(metric.window_s),
    count(metric.samples),
    <VerdictBadge key="verdict" verdict={metric.verdict} />,
  ];
}

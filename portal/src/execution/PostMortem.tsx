/** What went wrong, in sentences made of the record: reason, and the gate that failed with its numbers. */
import type { ChangeDetail, GateMetric } from "../api/types";
import { measured, metricName, percent, reading, seconds, words } from "../format";
import { Panel } from "../ui/basics";

const WENT_WRONG = ["rolled_back", "rolling_back", "failed", "vetoed", "cancelled"];

export function PostMortem({ change }: { change: ChangeDetail }) {
  if (!WENT_WRONG.includes(change.state)) return null;
  const reason = change.end_reason ?? change.rollback_reason;
  const failed = change.stages.find((stage) => stage.status === "failed");
  const bad = failed?.looks.flatMap((look) => look.answers).flatMap((answer) => answer.metrics) ?? [];
  const undone = change.timeline.find((event) => event.kind === "rollback.completed")?.fact;
  return (
    <Panel title={`What happened: ${words(change.state)}`}>
      <div className="space-y-2">
        <p>{reason ?? "No reason is recorded."}</p>
        {failed && (
          <p>
            It failed in stage {failed.stage + 1}, at {percent(failed.share)} of the traffic.
          </p>
        )}
        <ul className="list-disc pl-5">
          {bad
            .filter((metric) => metric.verdict === "roll_back")
            .map((metric, number) => (
              <li key={number}>{sentence(metric)}</li>
            ))}
        </ul>
        {undone && (
          <p>
            Undone, and the target {undone["proved"] ? "was read back as it stood before" : "could not be proved to stand as before"}:{" "}
            {String(undone["detail"])}
          </p>
        )}
        {change.state === "failed" && (
          <p className="font-medium text-bad">A person is needed: look at the target itself.</p>
        )}
      </div>
    </Panel>
  );
}

function sentence(metric: GateMetric): string {
  return (
    `${metricName(metric.name)}: observed ${reading(metric.observed, metric.unit)}, allowed ` +
    `${measured(metric.threshold, metric.unit)}, over ${seconds(metric.window_s)}` +
    `${metric.detail ? ` (${metric.detail})` : ""}`
  );
}

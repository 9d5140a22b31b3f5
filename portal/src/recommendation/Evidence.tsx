/** What a decision rests on: readings with threshold, window, sample size and source. */
import type { Evidence, Recommendation } from "../api/types";
import { count, measured, metricName, reading, seconds, UNKNOWN, words } from "../format";
import { Badge } from "../ui/basics";
import { Table } from "../ui/table";

export function EvidenceTable({
  evidence,
  curve = [],
}: {
  evidence: readonly Evidence[];
  curve?: Recommendation["curve"];
}) {
  if (evidence.length === 0 && curve.length === 0) {
    return <p className="text-muted">None was given.</p>;
  }
  return (
    <>
      {evidence.length > 0 && (
        <Table
          label="evidence"
          head={["what", "reading", "threshold", "window", "samples", "source"]}
          rows={evidence.map((one) => [
            metricName(one.name),
            reading(one.reading, one.unit),
            measured(one.threshold, one.unit),
            seconds(one.window_s),
            count(one.samples),
            one.source,
          ])}
        />
      )}
      {curve.length > 0 && <Trials curve={curve} />}
    </>
  );
}

function Trials({ curve }: { curve: Recommendation["curve"] }) {
  return (
    <Table
      label="configurations that were tried on a staging replica"
      head={["configuration", "outcome", "tokens/s", "TTFT p95", "TPOT p95"]}
      rows={curve.map((trial) => [
        Object.entries(trial.knobs).map(([name, value]) => `${words(name)} ${String(value)}`).join(", ") || UNKNOWN,
        <Badge key="outcome" tone={trial.outcome === "complete" ? "good" : "warn"}>
          {trial.outcome}
        </Badge>,
        reading(trial.tokens_per_s, "per_s"),
        reading(trial.ttft_p95_s, "s"),
        reading(trial.tpot_p95_s, "s"),
      ])}
    />
  );
}

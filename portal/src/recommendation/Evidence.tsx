/** What a decision rests on: readings with threshold, window, sample size and source. */
import type { ReactNode } from "react";
import type { Evidence, Reading, Recommendation } from "../api/types";
import { count, measured, metricName, reading, seconds, UNKNOWN, words } from "../format";
import { Badge } from "../ui/basics";
import { SparseTable, Table } from "../ui/table";

interface Props {
  evidence: readonly Evidence[];
  curve?: Recommendation["curve"];
  /** Beside what was measured over a window; prices and policies are read, not measured. */
  mark?: ReactNode;
}

export function EvidenceTable({ evidence, curve = [], mark }: Props) {
  if (evidence.length === 0 && curve.length === 0) {
    return <p className="text-muted">None was given.</p>;
  }
  return (
    <>
      {evidence.length > 0 && (
        <SparseTable
          label="evidence"
          head={["what", "reading", "threshold", "window", "samples", "source"]}
          rows={evidence.map((one) => [
            metricName(one.name),
            <div key="reading">
              {reading(one.reading, one.unit)}
              {one.reading.state === "known" && typeof one.window_s === "number" && mark}
              <Bar value={valueOf(one.reading)} limit={one.threshold} />
            </div>,
            measured(one.threshold, one.unit),
            seconds(one.window_s),
            count(one.samples),
            one.source,
          ])}
        />
      )}
      {curve.length > 0 && <Trials curve={curve} mark={mark} />}
    </>
  );
}

function valueOf(value: Reading): number | null {
  return value.state === "known" ? value.value : null;
}

/** A reading as a bar from 0, with a stroke where its threshold (or what it is held to) is. */
function Bar({ value, limit }: { value: number | null; limit: number | null | undefined }) {
  if (value === null || value < 0 || typeof limit !== "number" || limit <= 0) return null;
  const most = Math.max(value, limit) * 1.1;
  const at = (limit / most) * 100;
  return (
    <svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" className="mt-1 h-2 w-28">
      <rect width="100" height="8" fill="var(--raised)" />
      <rect width={(value / most) * 100} height="8" fill="var(--accent)" />
      <rect x={at - 1} width="2" height="8" fill="var(--ink)" />
    </svg>
  );
}

function Trials({ curve, mark }: { curve: NonNullable<Recommendation["curve"]>; mark: ReactNode }) {
  const most = Math.max(0, ...curve.map((trial) => valueOf(trial.tokens_per_s) ?? 0));
  return (
    <Table
      label="configurations that were tried on a staging replica"
      head={["configuration", "outcome", "tokens/s", "TTFT p95", "TPOT p95"]}
      rows={curve.map((trial) => [
        Object.entries(trial.knobs).map(([name, value]) => `${words(name)} ${String(value)}`).join(", ") || UNKNOWN,
        <Badge key="outcome" tone={trial.outcome === "complete" ? "good" : "warn"}>
          {trial.outcome}
        </Badge>,
        <div key="tokens">
          {reading(trial.tokens_per_s, "per_s")}
          {trial.tokens_per_s.state === "known" && mark}
          <Bar value={valueOf(trial.tokens_per_s)} limit={most} />
        </div>,
        reading(trial.ttft_p95_s, "s"),
        reading(trial.tpot_p95_s, "s"),
      ])}
    />
  );
}

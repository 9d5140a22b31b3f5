/** How earlier predictions of this kind turned out, from the outcomes in the event log. */
import type { EventRow, Interval, Page, Reading } from "../api/types";
import { usdPerMonth, words } from "../format";
import { useSnapshot } from "../live/context";

interface Outcome {
  kind: string;
  terminal: string;
  predicted_usd_per_month: Interval | null;
  realised_usd_per_month: Reading;
}

export function PastOutcomes({ kind }: { kind: string }) {
  const query = useSnapshot<Page<EventRow>>(["outcomes"], "/events?kind=outcome.recorded&limit=200");
  if (query.data === undefined) return null;
  const past = query.data.items
    .map((event) => (event.fact as { outcome: Outcome }).outcome)
    .filter((outcome) => outcome.kind === kind);
  const completed = past.filter((outcome) => outcome.terminal === "completed");
  const compared = completed.flatMap(({ predicted_usd_per_month: predicted, realised_usd_per_month: got }) =>
    predicted && got.state === "known" ? [{ predicted: predicted.mid, got: got.value }] : [],
  );
  if (past.length === 0) return <p className="text-muted">No {words(kind)} has ended here before.</p>;
  const sum = (name: "predicted" | "got") => compared.reduce((total, one) => total + one[name], 0);
  return (
    <p className="text-muted">
      {past.length} past {words(kind)}: {completed.length} completed
      {compared.length > 0 &&
        `; predicted ${usdPerMonth(sum("predicted"))}, realised ${usdPerMonth(sum("got"))} in all`}
      .
    </p>
  );
}

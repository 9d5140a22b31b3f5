/** How earlier predictions of this kind turned out, in all and case by case. */
import type { CardView } from "../api/types";
import { day, reading, savingRange, UNKNOWN, usdPerMonth, words } from "../format";
import { Simulated } from "../ui/simulated";
import { StateBadge } from "../ui/states";
import { Table } from "../ui/table";

interface RecordProps {
  record: CardView["money"]["track_record"];
  simulated: CardView["simulated"];
}

export function TrackRecord({ record, simulated }: RecordProps) {
  const { kind, finished, known, within } = record;
  if (finished === 0) return <p className="text-muted">No {words(kind)} has completed here before.</p>;
  return (
    <p className="text-muted">
      {finished} past {words(kind)} completed
      {known === 0
        ? "; of none are both forecast and saving known."
        : `; of the ${known} with both numbers: predicted ${usdPerMonth(record.predicted_usd_per_month)}, realised ${usdPerMonth(record.realised_usd_per_month)} in all, ${within} within the predicted range.`}
      <Simulated of={record.deployments} among={simulated} />
    </p>
  );
}

interface CasesProps {
  cases: CardView["evidence"]["similar"];
  simulated: CardView["simulated"];
}

export function SimilarCases({ cases, simulated }: CasesProps) {
  if (cases.length === 0) return <p className="text-muted">No similar change has ended before.</p>;
  return (
    <Table
      label="similar past cases"
      head={["similar past case", "ended", "predicted", "realised", "on"]}
      rows={cases.map((one) => [
        one.title ?? UNKNOWN,
        <StateBadge key="state" state={one.terminal} />,
        savingRange(one.predicted_usd_per_month),
        <span key="realised">
          {one.realised_usd_per_month.state === "known"
            ? usdPerMonth(one.realised_usd_per_month.value)
            : reading(one.realised_usd_per_month, "usd_per_hour")}
          <Simulated of={[one.deployment]} among={simulated} />
        </span>,
        day(one.at),
      ])}
    />
  );
}

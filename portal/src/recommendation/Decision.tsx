/** A person's word: bound to the version that is shown, and acknowledged by its own event. */
import { useState } from "react";
import type { CardView } from "../api/types";
import { dayAndClock, relative, words } from "../format";
import { useStaleReason } from "../shell/Connection";
import { useSession } from "../shell/session";
import { Ago, Button, useNow } from "../ui/basics";
import { includes } from "../api/session";
import { VerdictBadge } from "../ui/states";
import { DecisionDialog } from "./DecisionDialog";
import { isAsleep } from "./order";
import { SnoozeDialog } from "./SnoozeDialog";

/** Why this person has no say now; null when they have. */
function useRefusal(card: CardView): string | null {
  const who = useSession();
  const stale = useStaleReason();
  if (!card.decision.awaited) {
    return `no decision is awaited: ${card.decision.reason ?? `it is ${words(card.state)}`}`;
  }
  if (who === null || !includes(who.role, "approver")) {
    return `it needs the role approver; you are ${who?.role ?? "signed out"}`;
  }
  return stale;
}

/** That a person has one word on a version. */
function useSaidBefore(card: CardView): string | null {
  const who = useSession();
  const mine = card.decision.approvals.find(
    (one) => one.by === `person:${who?.name}` && one.version_hash === card.header.version_hash,
  );
  return mine ? `you have ${mine.granted ? "approved" : "rejected"} it already` : null;
}

export function Decision({ card }: { card: CardView }) {
  const [open, setOpen] = useState<"approve" | "reject" | "snooze" | "wake" | null>(null);
  const now = useNow();
  const refusal = useRefusal(card);
  const before = useSaidBefore(card);
  const why = card.decision.awaited ? (before ?? refusal) : refusal;
  const { approvals, approvals_needed, approvals_left, snoozed } = card.decision;
  const asleep = isAsleep(snoozed, now);
  const close = () => setOpen(null);
  return (
    <section
      aria-label="decision"
      className="sticky -bottom-4 -mx-4 -mb-4 space-y-2 rounded-b-lg border-t border-line bg-panel p-4"
    >
      {approvals.length > 0 && (
        <ul className="space-y-1">
          {approvals.map((one) => (
            <li key={`${one.by} ${one.at}`} className="flex flex-wrap items-center gap-2">
              <VerdictBadge verdict={one.granted ? "approve" : "reject"} />
              <span>
                {one.by}, <Ago at={one.at} />
                {one.reason && `: ${one.reason}`}
              </span>
            </li>
          ))}
        </ul>
      )}
      {approvals_needed > 1 && (
        <p>
          {approvals_needed} different people must say yes; {approvals_left} more to come.
        </p>
      )}
      {asleep && (
        <p>
          Snoozed until {dayAndClock(snoozed.until)}, {relative(snoozed.until, now)}, by {snoozed.by}
          {snoozed.reason && `: ${snoozed.reason}`}
        </p>
      )}
      <div className="flex flex-wrap items-center gap-2">
        <Button
          look="primary"
          data-action="approve"
          why={why ?? (asleep ? "it is snoozed: wake it first" : null)}
          onClick={() => setOpen("approve")}
        >
          Approve
        </Button>
        <Button look="danger" data-action="reject" why={why} onClick={() => setOpen("reject")}>
          Reject
        </Button>
        <Button data-action="snooze" why={refusal} onClick={() => setOpen(asleep ? "wake" : "snooze")}>
          {asleep ? "Wake" : "Snooze"}
        </Button>
        {why && <span className="text-sm text-muted">{why}</span>}
      </div>
      {(open === "approve" || open === "reject") && <DecisionDialog card={card} verb={open} onClose={close} />}
      {(open === "snooze" || open === "wake") && <SnoozeDialog card={card} verb={open} onClose={close} />}
    </section>
  );
}

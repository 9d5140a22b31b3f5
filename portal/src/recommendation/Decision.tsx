/** A person's word: bound to the version that is shown, and acknowledged by its own event. */
import { useState } from "react";
import type { CardView } from "../api/types";
import { words } from "../format";
import { useStaleReason } from "../shell/Connection";
import { useSession } from "../shell/session";
import { Ago, Button } from "../ui/basics";
import { includes } from "../api/session";
import { VerdictBadge } from "../ui/states";
import { DecisionDialog } from "./DecisionDialog";

/** Why this person cannot decide now; null when they can. */
function useRefusal(card: CardView): string | null {
  const who = useSession();
  const stale = useStaleReason();
  if (!card.decision.awaited) {
    return `no decision is awaited: ${card.decision.reason ?? `it is ${words(card.state)}`}`;
  }
  if (who === null || !includes(who.role, "approver")) {
    return `it needs the role approver; you are ${who?.role ?? "signed out"}`;
  }
  const mine = card.decision.approvals.find(
    (one) => one.by === `person:${who.name}` && one.version_hash === card.header.version_hash,
  );
  if (mine) return `you have ${mine.granted ? "approved" : "rejected"} it already`;
  return stale;
}

export function Decision({ card }: { card: CardView }) {
  const [open, setOpen] = useState<"approve" | "reject" | null>(null);
  const why = useRefusal(card);
  const { approvals, approvals_needed, approvals_left } = card.decision;
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
      <div className="flex flex-wrap items-center gap-2">
        <Button look="primary" data-action="approve" why={why} onClick={() => setOpen("approve")}>
          Approve
        </Button>
        <Button look="danger" data-action="reject" why={why} onClick={() => setOpen("reject")}>
          Reject
        </Button>
        {why && <span className="text-sm text-muted">{why}</span>}
      </div>
      {open && <DecisionDialog card={card} verb={open} onClose={() => setOpen(null)} />}
    </section>
  );
}

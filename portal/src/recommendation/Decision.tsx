/** A person's word: bound to the version that is shown, and acknowledged by its own event. */
import { useState } from "react";
import type { RecommendationDetail } from "../api/types";
import { words } from "../format";
import { useStaleReason } from "../shell/Connection";
import { useSession } from "../shell/session";
import { Ago, Button } from "../ui/basics";
import { includes } from "../api/session";
import { VerdictBadge } from "../ui/states";
import { DecisionDialog } from "./DecisionDialog";

/** Why this person cannot decide now; null when they can. */
function useRefusal(detail: RecommendationDetail): string | null {
  const who = useSession();
  const stale = useStaleReason();
  if (detail.state !== "awaiting_approval") {
    return `no decision is awaited: it is ${words(detail.state)}`;
  }
  if (who === null || !includes(who.role, "approver")) {
    return `it needs the role approver; you are ${who?.role ?? "signed out"}`;
  }
  const mine = detail.approvals.find(
    (one) => one.by === `person:${who.name}` && one.version_hash === detail.version_hash,
  );
  if (mine) return `you have ${mine.granted ? "approved" : "rejected"} it already`;
  return stale;
}

export function Decision({ detail }: { detail: RecommendationDetail }) {
  const [open, setOpen] = useState<"approve" | "reject" | null>(null);
  const why = useRefusal(detail);
  return (
    <section
      aria-label="decision"
      className="sticky -bottom-4 -mx-4 -mb-4 space-y-2 rounded-b-lg border-t border-line bg-panel p-4"
    >
      {detail.approvals.length > 0 && (
        <ul className="space-y-1">
          {detail.approvals.map((one) => (
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
      {detail.approvals_needed > 1 && <p>{detail.approvals_needed} different people must say yes.</p>}
      <div className="flex flex-wrap items-center gap-2">
        <Button look="primary" data-action="approve" why={why} onClick={() => setOpen("approve")}>
          Approve
        </Button>
        <Button look="danger" data-action="reject" why={why} onClick={() => setOpen("reject")}>
          Reject
        </Button>
        {why && <span className="text-sm text-muted">{why}</span>}
      </div>
      {open && <DecisionDialog detail={detail} verb={open} onClose={() => setOpen(null)} />}
    </section>
  );
}

/** Which tab a change stands in, and what comes first there. */
import type { ChangeState, RecommendationRow, Snooze } from "../api/types";

export const TABS = [
  { name: "pending", about: "waits for votes, its turn, or a person" },
  { name: "snoozed", about: "put off by a person; comes back by itself" },
  { name: "approved", about: "decided, not begun" },
  { name: "running", about: "being carried out or undone" },
  { name: "done", about: "carried out, undone or failed" },
  { name: "rejected", about: "refused by a person, or by the agents' votes" },
  { name: "expired", about: "nobody decided in time" },
  { name: "suppressed", about: "replaced by another proposal, or taken back" },
] as const;
export type Tab = (typeof TABS)[number]["name"];

const TAB_OF: Record<ChangeState, Tab> = {
  proposed: "pending",
  deferred: "pending",
  voting: "pending",
  awaiting_approval: "pending",
  approved: "approved",
  executing: "running",
  rolling_back: "running",
  completed: "done",
  rolled_back: "done",
  failed: "done",
  vetoed: "rejected",
  rejected: "rejected",
  expired: "expired",
  superseded: "suppressed",
  cancelled: "suppressed",
};

/** Whether it is put off at this moment; the time that it names ends it without an event. */
export function isAsleep(snooze: Snooze | null, now: number): snooze is Snooze {
  return snooze !== null && now < new Date(snooze.until).getTime();
}

export function tabOf(row: RecommendationRow, now: number): Tab {
  return isAsleep(row.snoozed, now) ? "snoozed" : TAB_OF[row.state];
}

/** Expected dollars a month times how sure they are; what has no estimate comes last. */
export function expectedValue(row: RecommendationRow): number {
  const saving = row.recommendation.saving_usd_per_month;
  return saving ? saving.mid * saving.confidence : Number.NEGATIVE_INFINITY;
}

/** What waits for a person first, then what is worth most; what sleeps, by when it wakes; what is over, by time. */
export function sorted(rows: RecommendationRow[], tab: Tab): RecommendationRow[] {
  const asked = (row: RecommendationRow) => Number(row.state === "awaiting_approval");
  const order = (a: RecommendationRow, b: RecommendationRow) =>
    tab === "pending" || tab === "approved"
      ? asked(b) - asked(a) || expectedValue(b) - expectedValue(a) || later(a, b)
      : tab === "snoozed"
        ? (a.snoozed?.until ?? "").localeCompare(b.snoozed?.until ?? "")
        : later(a, b);
  return [...rows].sort(order);
}

function later(a: RecommendationRow, b: RecommendationRow): number {
  return b.updated_at.localeCompare(a.updated_at);
}

/** How states, risks and verdicts look everywhere. */
import type { ChangeState, Risk } from "../api/types";
import { words } from "../format";
import { Badge, type Tone } from "./basics";

const OF_STATE: Record<ChangeState, Tone> = {
  proposed: "plain",
  deferred: "plain",
  voting: "accent",
  awaiting_approval: "warn",
  approved: "accent",
  executing: "accent",
  rolling_back: "warn",
  completed: "good",
  rolled_back: "warn",
  vetoed: "plain",
  rejected: "plain",
  expired: "plain",
  superseded: "plain",
  cancelled: "plain",
  failed: "bad",
};

export const TERMINAL = new Set<ChangeState>([
  "completed", "rolled_back", "vetoed", "rejected", "expired", "superseded", "cancelled", "failed",
]);

export function toneOf(state: string): Tone {
  return OF_STATE[state as ChangeState] ?? "plain";
}

export function StateBadge({ state }: { state: ChangeState }) {
  return <Badge tone={OF_STATE[state]}>{words(state)}</Badge>;
}

const OF_RISK: Record<Risk, Tone> = { low: "plain", medium: "accent", high: "warn", critical: "bad" };

export function RiskBadge({ risk }: { risk: Risk }) {
  return <Badge tone={OF_RISK[risk]}>{risk} risk</Badge>;
}

const OF_VERDICT: Record<string, Tone> = {
  pass: "good", approve: "good", hold: "warn", abstain: "warn", roll_back: "bad", reject: "bad",
};

export function VerdictBadge({ verdict }: { verdict: string | null }) {
  if (verdict === null) return <Badge>waiting</Badge>;
  return <Badge tone={OF_VERDICT[verdict] ?? "plain"}>{words(verdict)}</Badge>;
}

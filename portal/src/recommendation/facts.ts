/** What the card says of a proposal that the proposal does not say in so many words. */
import type { Recommendation, Vote } from "../api/types";
import { HOURS_PER_MONTH, percent, seconds, UNKNOWN, words } from "../format";

type Spec = Recommendation["spec"];

/** The parts of the change by name, with nested ones as `to.market`. */
export function valuesOf(spec: Spec): [string, string][] {
  return flat(spec as unknown as Record<string, unknown>, "");
}

function flat(value: Record<string, unknown>, prefix: string): [string, string][] {
  return Object.entries(value).flatMap(([name, part]): [string, string][] => {
    if (part === null || part === undefined || (prefix === "" && name === "kind")) return [];
    const named = words(`${prefix}${name}`);
    if (Array.isArray(part)) return [[named, part.map(String).join(", ") || "none"]];
    if (typeof part === "object") return flat(part as Record<string, unknown>, `${prefix}${name} `);
    return [[named, typeof part === "string" ? words(part) : String(part)]];
  });
}

export function replicasOf(spec: Spec): readonly string[] | null {
  return "replicas" in spec ? spec.replicas : null;
}

/** Share of the traffic at the first gate times the seconds it takes to undo it. */
export function exposure({ rollout, rollback_seconds }: Recommendation): string {
  const first = rollout.stages[0];
  if (!first) return UNKNOWN;
  const product = seconds(first.share * rollback_seconds);
  return `${percent(first.share)} of the traffic × ${seconds(rollback_seconds)} = ${product} of all traffic`;
}

export function spendPerMonth({ spend_usd_per_hour: spend }: Recommendation): number | null {
  return typeof spend === "number" ? spend * HOURS_PER_MONTH : null;
}

const DISSENT = ["reject", "abstain", "approve"];

/** The votes of the last round, dissent first. */
export function lastVotes(votes: Vote[]): Vote[] {
  const round = Math.max(0, ...votes.map((vote) => vote.round));
  return votes
    .filter((vote) => vote.round === round)
    .sort((a, b) => DISSENT.indexOf(a.verdict) - DISSENT.indexOf(b.verdict));
}

export function needsTyping({ risk }: Recommendation): boolean {
  return risk === "high" || risk === "critical";
}

/** A recorded policy in words. What this release does not know of it is left to the YAML. */
import type { Risk } from "../api/types";
import { count, dayAndClock, digits, seconds, words } from "../format";

interface Weekly {
  days: string[];
  start: string;
  end: string;
  time_zone: string;
}

interface Part {
  name: string;
  kinds: string[];
  deployments: string[];
}

export interface ApprovalRule extends Part {
  min_risk: Risk;
  max_risk: Risk | null;
  when: Weekly[];
  max_added_usd_per_month: number | null;
  max_change_usd_per_month: number | null;
  max_per_hour: number | null;
  max_per_day: number | null;
  decision: "approve" | "ask" | "ask_two" | "deny";
}

export interface Freeze extends Part {
  starts_at: string | null;
  ends_at: string | null;
  weekly: Weekly | null;
  halt_stages: boolean;
  also_urgent: boolean;
}

export interface Floor extends Part {
  evidence: string;
  max: number | null;
  min: number | null;
  where: "votes" | "gates" | "both";
  required: boolean;
  breach: "hold" | "roll_back";
}

interface Arbitration {
  order: string[];
  interests: Record<string, string>;
  needs: Record<string, string[]>;
  max_wait_s: number;
  max_preemptions: number;
  budgets: { name: string; deployments: string[]; max_moving: number | null; max_usd_per_hour: number | null }[];
}

/** As the API gives it: every key, defaults included. */
export interface PolicyContent {
  approvals: ApprovalRule[];
  four_eyes_from: Risk | null;
  freezes: Freeze[];
  floors: Floor[];
  arbitration: Arbitration;
  approval_expiry_s: Record<Risk, number>;
  vote_deadline_s: number;
  urgent_vote_deadline_s: number;
  max_vote_rounds: number;
  votes_valid_s: number;
  gate_answer_s: number;
  rollback_timeout_s: number;
  movers_per_hour: number | null;
  movers_per_hour_per_target: number | null;
  max_moving: number;
  fallback_market: string;
}

const KEYS: readonly (keyof PolicyContent)[] = [
  "approvals", "four_eyes_from", "freezes", "floors", "arbitration", "approval_expiry_s",
  "vote_deadline_s", "urgent_vote_deadline_s", "max_vote_rounds", "votes_valid_s", "gate_answer_s",
  "rollback_timeout_s", "movers_per_hour", "movers_per_hour_per_target", "max_moving", "fallback_market",
];

/** Null for a policy that another release has recorded, with other keys. */
export function contentOf(policy: Record<string, unknown>): PolicyContent | null {
  return KEYS.every((key) => key in policy) ? (policy as unknown as PolicyContent) : null;
}

export const DECISIONS: Record<ApprovalRule["decision"], string> = {
  approve: "approves",
  ask: "asks a person",
  ask_two: "asks two people",
  deny: "refuses",
};

function scope({ kinds, deployments }: Part): string {
  const what = kinds.length > 0 ? kinds.map(words).join(", ") : "every kind of change";
  return deployments.length > 0 ? `${what} on ${deployments.join(", ")}` : what;
}

function hours({ days, start, end, time_zone }: Weekly): string {
  const when = days.length > 0 ? days.join(", ") : "every day";
  return `${when} ${start}–${end} (${time_zone})`;
}

function risks({ min_risk, max_risk, decision }: ApprovalRule): string {
  const highest = max_risk ?? (decision === "approve" ? "low" : "critical");
  return min_risk === highest ? `${min_risk} risk` : `${min_risk} to ${highest} risk`;
}

/** What a rule is about, and how far it goes: one thing each. */
export function ruleTold(rule: ApprovalRule): string[] {
  const { max_added_usd_per_month: added, max_change_usd_per_month: change } = rule;
  return [
    scope(rule),
    risks(rule),
    ...rule.when.map((one) => `only ${hours(one)}`),
    ...(added === null ? [] : [`up to $${count(added)}/month more`]),
    ...(change === null ? [] : [`up to $${count(change)}/month of change, either way`]),
    ...(rule.max_per_hour === null ? [] : [`at most ${rule.max_per_hour} in 60 minutes`]),
    ...(rule.max_per_day === null ? [] : [`at most ${rule.max_per_day} in 24 hours`]),
  ];
}

export function freezeTold(freeze: Freeze): string[] {
  const once =
    freeze.starts_at && freeze.ends_at
      ? `from ${dayAndClock(freeze.starts_at)} to ${dayAndClock(freeze.ends_at)}, your time`
      : "";
  return [
    freeze.weekly ? hours(freeze.weekly) : once,
    scope(freeze),
    freeze.halt_stages ? "the next stage of what is under way waits, too" : "what is under way goes on",
    freeze.also_urgent ? "what is urgent waits, too" : "what is urgent passes",
  ];
}

const PLACES: Record<Floor["where"], string> = { votes: "on votes", gates: "at gates", both: "on votes and at gates" };

export function floorTold(floor: Floor): string[] {
  const bounds = [
    ...(floor.min === null ? [] : [`at least ${digits(floor.min)}`]),
    ...(floor.max === null ? [] : [`at most ${digits(floor.max)}`]),
  ];
  return [
    `${floor.evidence} ${bounds.join(", ")}`,
    scope(floor),
    PLACES[floor.where],
    floor.breach === "roll_back" ? "a broken gate undoes" : "a broken gate holds",
    ...(floor.required ? ["an unknown value counts as broken"] : []),
  ];
}

/** The rest, as names and values with their units. */
export function limitsTold(policy: PolicyContent): [string, string][] {
  const { arbitration: order, approval_expiry_s: expiry } = policy;
  const perHour = policy.movers_per_hour === null ? "no limit" : String(policy.movers_per_hour);
  const here = policy.movers_per_hour_per_target;
  return [
    ["two people from", policy.four_eyes_from === null ? "no risk: one is enough" : `${policy.four_eyes_from} risk on`],
    ["people are waited for", Object.entries(expiry).map(([risk, s]) => `${risk} ${seconds(s)}`).join(" · ")],
    ["changes under way at once", `${policy.max_moving}, on one deployment always one`],
    ["changes that begin in 60 minutes", here === null ? perHour : `${perHour}, on one deployment ${here}`],
    ["a vote that is missing is a veto after", `${seconds(policy.vote_deadline_s)}, urgent ${seconds(policy.urgent_vote_deadline_s)}`],
    ["agents that abstain are asked", `${policy.max_vote_rounds} times`],
    ["votes are cast again after", seconds(policy.votes_valid_s)],
    ["a gate’s silence counts as unknown after", seconds(policy.gate_answer_s)],
    ["an undo calls a person after", seconds(policy.rollback_timeout_s)],
    ["where spot has none, buy", words(policy.fallback_market)],
    ["whose good goes first", order.order.join(", then ")],
    ["a change goes first after waiting", seconds(order.max_wait_s)],
    ...Object.entries(order.needs).map(([one, needed]): [string, string] => [`${one} needs`, needed.join(", ")]),
    ...Object.entries(order.interests).map(([kind, whose]): [string, string] => [`${words(kind)} is for`, whose]),
    ...order.budgets.map((budget): [string, string] => [
      `budget ${budget.name}`,
      [
        ...(budget.max_moving === null ? [] : [`${budget.max_moving} under way`]),
        ...(budget.max_usd_per_hour === null ? [] : [`$${count(budget.max_usd_per_hour)}/h under way`]),
        budget.deployments.length > 0 ? `over ${budget.deployments.join(", ")}` : "over all deployments",
      ].join(", "),
    ]),
  ];
}

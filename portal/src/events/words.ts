/** An event in plain words. */
import { dayAndClock, percent, words } from "../format";

type Fact = Record<string, unknown>;

interface Step {
  kind: string;
  stage: number;
  share: number;
}

function inner(fact: Fact, name: string): Fact {
  const found = fact[name];
  return typeof found === "object" && found !== null ? (found as Fact) : {};
}

function text(value: unknown): string {
  return value === null || value === undefined ? "–" : String(value);
}

function because(fact: Fact): string {
  return fact["reason"] ? `: ${text(fact["reason"])}` : "";
}

function stepped(value: unknown): string {
  const step = value as Step | undefined;
  if (!step) return "a step";
  return step.kind === "apply" ? `stage ${step.stage + 1} (${percent(step.share)})` : words(step.kind);
}

const TOLD: Record<string, (fact: Fact) => string> = {
  "recommendation.proposed": (fact) => `proposed: ${text(inner(fact, "recommendation")["title"])}`,
  "recommendation.superseded": (fact) => `replaced by another proposal${because(fact)}`,
  "recommendation.expired": (fact) => `expired${because(fact)}`,
  "recommendation.snoozed": (fact) =>
    `put off until ${dayAndClock(text(fact["until"]))} by ${text(fact["by"])}${because(fact)}`,
  "recommendation.woken": (fact) => `woken by ${text(fact["by"])}${because(fact)}`,
  "vote.requested": () => "the agents are asked for their votes",
  "vote.cast": (fact) => {
    const vote = inner(fact, "vote");
    const reasons = Array.isArray(vote["reasons"]) ? vote["reasons"].map(String).join("; ") : "";
    return `${text(vote["agent"])} votes ${text(vote["verdict"])}: ${reasons}`;
  },
  "approval.requested": (fact) => `a person is asked${because(fact)}`,
  "approval.granted": (fact) => approval(fact, "approved"),
  "approval.denied": (fact) => approval(fact, "refused"),
  "change.approved": (fact) => `approved by ${text(fact["by"])}`,
  "change.rejected": (fact) => `rejected by ${text(fact["by"])}${because(fact)}`,
  "change.vetoed": (fact) => `vetoed: ${(fact["reasons"] as string[]).join("; ")}`,
  "change.deferred": (fact) => `waits for its turn${because(fact)}`,
  "change.paused": (fact) => `paused by ${text(fact["by"])}${because(fact)}`,
  "change.resumed": (fact) => `resumed by ${text(fact["by"])}`,
  "change.rolled_back": (fact) => `rolled back${because(fact)}`,
  "change.failed": (fact) => `failed${because(fact)}`,
  "change.cancelled": (fact) => `cancelled by ${text(fact["by"])}${because(fact)}`,
  "change.completed": () => "completed",
  "change.opened": () => "opened",
  "execution.requested": (fact) => `asked for ${stepped(fact["step"])}`,
  "execution.started": (fact) => `${text(fact["executor"])} begins ${stepped(fact["step"])}`,
  "execution.staged": (fact) => `in force: ${stepped(inner(fact, "result")["step"])}`,
  "execution.failed": (fact) => `${stepped(fact["step"])} failed${because(fact)}`,
  "gate.requested": (fact) => `gate of stage ${Number(fact["stage"]) + 1} asked, look ${text(fact["look"])}`,
  "gate.answered": (fact) => {
    const answer = inner(fact, "answer");
    return `${text(answer["assessor"])} says ${words(text(answer["verdict"]))}: ${text(answer["reason"])}`;
  },
  "gate.closed": (fact) =>
    `gate of stage ${Number(fact["stage"]) + 1}, look ${text(fact["look"])}: ${words(text(fact["verdict"]))}`,
  "rollback.requested": (fact) => `rollback asked for${because(fact)}`,
  "rollback.completed": (fact) => `undone: ${text(fact["detail"])}`,
  "control.requested": (fact) => `${text(fact["by"])} asks: ${text(fact["verb"])}${because(fact)}`,
  "conflict.resolved": (fact) => `${text(fact["verdict"])} (${text(fact["rule"])})${because(fact)}`,
  "switch.turned": (fact) =>
    `${text(fact["by"])} ${fact["stopped"] ? "stopped all changes" : "let changes go on"}${because(fact)}`,
  "agent.lost": (fact) => `${text(fact["agent"])} has fallen silent`,
  "agent.registered": (fact) => `${text(fact["agent"])} has registered`,
  "policy.changed": () => "the policy has changed",
  "quality.assessed": (fact) =>
    `answers of ${text(fact["deployment"])} score ${Number(fact["mean"]).toFixed(3)} (${text(fact["units"])} units)`,
  "quality.regressed": (fact) => `quality fell${because(fact)}`,
  "timer.set": (fact) => `a deadline is set: ${words(text(fact["name"]))}`,
  "timer.fired": (fact) => `a deadline has passed: ${words(text(fact["name"]))}`,
  "outcome.recorded": (fact) => `outcome recorded: ${words(text(inner(fact, "outcome")["terminal"]))}`,
  "telemetry.gap": (fact) => `telemetry is missing: ${text(fact["detail"])}`,
};

function approval(fact: Fact, verb: string): string {
  const word = inner(fact, "approval");
  return `${verb} by ${text(inner(word, "by")["name"])}${because(word)}`;
}

/** What happened; an event that is not known here is told by its kind. */
export function summaryOf(kind: string, fact: Fact): string {
  return TOLD[kind]?.(fact) ?? words(kind.replace(".", " "));
}

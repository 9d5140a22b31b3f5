/** Which of the things that are shown an event touches. */

export interface CloudEvent {
  id: string;
  type: string;
  time: string;
  source: string;
  subject?: string;
  correlationid?: string;
  data: Record<string, unknown>;
}

/** A topic is the beginning of a query's key. */
export type Topic = readonly string[];

const OF_CHANGES = [
  "recommendation", "vote", "approval", "change", "execution",
  "gate", "rollback", "quality", "conflict", "outcome", "control",
];

/** `optiinfra.change.completed.v1` → `change.completed` */
export function kindOf(type: string): string {
  return type.split(".").slice(1, 3).join(".");
}

export function topicsOf(event: CloudEvent): Topic[] {
  const family = kindOf(event.type).split(".")[0] ?? "";
  const topics: Topic[] = [["events"]];
  if (family === "agent") topics.push(["agents"]);
  if (family === "switch") topics.push(["switch"]);
  if (family === "policy") topics.push(["deployments"], ["policies"]);
  if (family === "outcome") topics.push(["outcomes"]);
  if (!OF_CHANGES.includes(family)) return topics;
  topics.push(["recommendations"], ["changes"]);
  const change = changeOf(event);
  if (change !== null) topics.push(["recommendation", change], ["change", change]);
  return topics;
}

function changeOf(event: CloudEvent): string | null {
  if (event.correlationid) return event.correlationid;
  const inner = ["recommendation", "vote", "answer", "approval", "outcome"];
  for (const part of [event.data, ...inner.map((name) => event.data[name])]) {
    if (typeof part !== "object" || part === null) continue;
    const { change, id } = part as { change?: unknown; id?: unknown };
    if (typeof change === "string") return change;
    if (typeof id === "string" && part !== event.data) return id;
  }
  return null;
}

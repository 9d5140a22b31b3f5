/** How marks and spans of a lane look and read: each has a sign of its own beside its colour. */
import type { Lane, Mark, Span } from "../api/types";
import { clock, percent, words } from "../format";
import type { Tone } from "../ui/basics";
import { toneOf } from "../ui/states";

export interface Look {
  sign: string;
  tone: Tone;
  word: string;
}

const OF_MARK: Record<string, Look> = {
  "recommendation.proposed": { sign: "▲", tone: "accent", word: "proposes" },
  "recommendation.expired": { sign: "✕", tone: "plain", word: "expired" },
  "recommendation.superseded": { sign: "✕", tone: "plain", word: "superseded" },
  "vote.requested": { sign: "◇", tone: "plain", word: "asks for votes" },
  "vote.cast approve": { sign: "●", tone: "good", word: "votes approve" },
  "vote.cast reject": { sign: "✕", tone: "bad", word: "votes reject" },
  "vote.cast abstain": { sign: "○", tone: "plain", word: "abstains" },
  "approval.requested": { sign: "?", tone: "warn", word: "asks a person" },
  "approval.granted": { sign: "✓", tone: "good", word: "approves" },
  "approval.denied": { sign: "✕", tone: "bad", word: "refuses" },
  "change.approved": { sign: "✓", tone: "good", word: "approved: begins" },
  "change.completed": { sign: "★", tone: "good", word: "completed" },
  "change.vetoed": { sign: "✕", tone: "bad", word: "vetoed" },
  "change.rejected": { sign: "✕", tone: "plain", word: "rejected" },
  "change.cancelled": { sign: "✕", tone: "plain", word: "cancelled" },
  "change.failed": { sign: "✕", tone: "bad", word: "failed" },
  "change.deferred": { sign: "‖", tone: "plain", word: "deferred" },
  "change.paused": { sign: "‖", tone: "warn", word: "paused" },
  "change.resumed": { sign: "▶", tone: "accent", word: "resumed" },
  "change.rolled_back": { sign: "↩", tone: "warn", word: "rolled back" },
  "execution.started": { sign: "▶", tone: "accent", word: "begins a step" },
  "execution.staged": { sign: "■", tone: "accent", word: "in force" },
  "execution.failed": { sign: "✕", tone: "bad", word: "step failed" },
  "gate.answered pass": { sign: "✓", tone: "good", word: "says pass" },
  "gate.answered hold": { sign: "‖", tone: "warn", word: "says hold" },
  "gate.answered roll_back": { sign: "✕", tone: "bad", word: "says roll back" },
  "gate.closed pass": { sign: "✓", tone: "good", word: "gate passed" },
  "gate.closed hold": { sign: "‖", tone: "warn", word: "gate holds" },
  "gate.closed roll_back": { sign: "✕", tone: "bad", word: "gate failed" },
  "rollback.requested": { sign: "↩", tone: "warn", word: "asks to undo" },
  "rollback.completed": { sign: "↩", tone: "warn", word: "undone" },
  "quality.regressed": { sign: "!", tone: "bad", word: "quality fell" },
  "agent.registered": { sign: "↑", tone: "good", word: "heard" },
  "agent.lost": { sign: "!", tone: "bad", word: "heartbeat lost" },
  "telemetry.gap": { sign: "!", tone: "warn", word: "telemetry missing" },
  "switch.turned stopped": { sign: "■", tone: "bad", word: "stops all changes" },
};

export function lookOf({ kind, detail }: Mark): Look {
  const known = OF_MARK[detail === null ? kind : `${kind} ${detail}`] ?? OF_MARK[kind];
  return known ?? { sign: "◇", tone: "plain", word: words(kind.replace(".", " ")) };
}

const OF_STEP: Record<string, Look> = {
  passed: { sign: "✓", tone: "good", word: "passed" },
  done: { sign: "✓", tone: "good", word: "done" },
  completed: { sign: "✓", tone: "good", word: "completed" },
  failed: { sign: "✕", tone: "bad", word: "failed" },
  "not proved": { sign: "✕", tone: "bad", word: "not proved" },
  undone: { sign: "↩", tone: "warn", word: "undone" },
  "broken off": { sign: "✕", tone: "warn", word: "broken off" },
  silent: { sign: "!", tone: "bad", word: "silent" },
  "heard again": { sign: "!", tone: "warn", word: "silent, then heard again" },
};

const SIGN_OF_TONE: Record<Tone, string> = { plain: "–", accent: "●", good: "✓", warn: "!", bad: "✕" };

export function spanLook(span: Span): Look {
  if (span.kind === "change") {
    const tone = toneOf(span.state);
    return { sign: SIGN_OF_TONE[tone], tone, word: words(span.state) };
  }
  return OF_STEP[span.state] ?? { sign: span.kind === "rollback" ? "↩" : "●", tone: "accent", word: span.state };
}

/** What a span is of: "stage 1 (10 %)". */
export function spanName({ kind, stage, share, title }: Span): string {
  if (kind === "change") return title;
  if (kind === "silence") return title;
  if (kind === "rollback") return "undo";
  if (kind === "finish") return "release what is old";
  return `stage ${(stage ?? 0) + 1}${share === null ? "" : ` (${percent(share)})`}`;
}

/** One thing in a lane, whether it took a moment or lasted. */
export interface Item {
  id: string;
  lane: string;
  since: number;
  /** Null while it goes on. */
  until: number | null;
  /** In which row it lies, if it lasts. */
  row: number | null;
  look: Look;
  name: string;
  count: number;
  change: string | null;
  event: string | null;
}

function ofMark(lane: string, mark: Mark): Item {
  const { at, last_at, count, change, event, title } = mark;
  const look = lookOf(mark);
  return {
    id: `${event} ${mark.kind}`, lane, since: time(at), until: time(last_at), row: null, look, count, change, event,
    name: count > 1 ? `${look.word} (${count} times)` : `${look.word}${title ? `: ${title}` : ""}`,
  };
}

function ofSpan(lane: string, span: Span, number: number): Item {
  const { since, until, row, change, event, title } = span;
  const look = spanLook(span);
  const about = span.kind === "change" || span.kind === "silence" ? "" : ` of ${title}`;
  return {
    id: `${lane} ${number}`, lane, since: time(since), until: until === null ? null : time(until), row, look, count: 1, change, event,
    name: `${spanName(span)}${about}: ${look.word}`,
  };
}

function time(at: string): number {
  return new Date(at).getTime();
}

/** Everything in a lane, in the order in which it began. */
export function itemsOf({ lane, marks, spans }: Lane): Item[] {
  const all = [...spans.map((span, number) => ofSpan(lane, span, number)), ...marks.map((mark) => ofMark(lane, mark))];
  return all.sort((one, other) => one.since - other.since);
}

/** "14:05:12 cost: proposes: Move chat to spot" */
export function toldOf({ lane, since, until, row, name }: Item): string {
  const ends = row === null ? "" : until === null ? " until now" : ` to ${clock(until)}`;
  return `${clock(since)}${ends}, ${lane}: ${name}`;
}

/** What is set, value by value, and as a diff of the whole configuration. */
import { useState } from "react";
import type { CardView } from "../api/types";
import { UNKNOWN, words } from "../format";
import { Button, classes } from "../ui/basics";
import { Table } from "../ui/table";

export function Change({ card: { change, unknown } }: { card: CardView }) {
  const why = unknown["change.values.before"];
  return (
    <>
      <Table
        label="values that change"
        head={["what", "now", "after"]}
        rows={change.values.map(({ name, before, after }) => [words(name), said(before), said(after)])}
      />
      {why && <p className="text-xs text-muted">– : {why}; the diff below has what telemetry knows of it</p>}
      <Diff text={change.diff} />
    </>
  );
}

function said(value: unknown): string {
  if (value === null || value === undefined) return UNKNOWN;
  if (Array.isArray(value)) return value.map(String).join(", ") || "none";
  if (typeof value !== "object") return String(value);
  return Object.entries(value)
    .filter(([, part]) => part !== null)
    .map(([name, part]) => `${words(name)} ${String(part)}`)
    .join(", ");
}

const LOOKS: Record<string, string> = { "+": "bg-good-soft", "-": "bg-bad-soft" };

/** The lines that change, or all of them. */
function Diff({ text }: { text: string }) {
  const [whole, setWhole] = useState(false);
  const [, , , ...lines] = text.split("\n");
  const shown = whole ? lines : lines.filter((line) => line[0] === "+" || line[0] === "-");
  return (
    <figure className="space-y-1">
      <figcaption className="flex flex-wrap items-center justify-between gap-2 text-muted">
        <span>
          {whole ? `the whole configuration, ${lines.length} lines` : "the lines that change"}; what
          is not known says unknown
        </span>
        <Button look="quiet" aria-pressed={whole} onClick={() => setWhole(!whole)}>
          {whole ? "Only what changes" : "Whole configuration"}
        </Button>
      </figcaption>
      <pre
        tabIndex={0}
        aria-label="raw diff"
        className="max-h-96 overflow-auto rounded border border-line py-2 font-mono text-xs leading-5"
      >
        {shown.map((line, number) => (
          <span key={number} className={classes("block px-3", LOOKS[line[0] ?? ""])}>
            {line}
          </span>
        ))}
      </pre>
    </figure>
  );
}

/** The policy in force, those before it, and a draft of the next one. */
import { useState } from "react";
import type { PolicyDetail, PolicyRow } from "../api/types";
import { useSnapshot } from "../live/context";
import { Ago, Badge, Button, Code, Empty, Facts, Panel, Raw } from "../ui/basics";
import { Shown, problemIn } from "../ui/problem";
import { Listed, useList } from "./list";
import { Choice, CopyText, Rows } from "./parts";
import { contentOf } from "./policy";
import { PolicyDraft } from "./PolicyDraft";
import { PolicyWords } from "./PolicyWords";

const TOPIC = ["policies"] as const;

export function Policy() {
  const [number, setNumber] = useState<number | null>(null);
  const current = useSnapshot<PolicyDetail>([...TOPIC, "current"], "/policies/current");
  const list = useList<PolicyRow>(TOPIC, "/policies?limit=50");
  const none = current.isError && problemIn(current.error).status === 404;
  if (none) {
    return (
      <Panel title="The policy in force">
        <Empty why="No policy is recorded yet." next="A coordinator records its policy when it starts." />
      </Panel>
    );
  }
  return (
    <>
      <Panel title="The policy in force">
        <Shown query={current} lines={8}>
          {(policy) => <PolicyShown policy={policy} />}
        </Shown>
      </Panel>
      <Panel title="All versions">
        <Listed list={list}>
          {(rows) => <Versions rows={rows} chosen={number} choose={setNumber} />}
        </Listed>
        {number !== null && <Older number={number} />}
      </Panel>
      <PolicyDraft current={current.data} />
    </>
  );
}

interface VersionsProps {
  rows: PolicyRow[];
  chosen: number | null;
  choose: (number: number | null) => void;
}

function Versions({ rows, chosen, choose }: VersionsProps) {
  return (
    <Rows
      label="recorded policies, the newest first"
      rows={rows.map((row) => ({
        key: String(row.number),
        name: (
          <span className="flex flex-wrap items-center gap-2">
            <span className="font-mono text-xs break-all">{row.version}</span>
            {row.in_force && <Badge tone="good">in force</Badge>}
          </span>
        ),
        about: (
          <span className="break-words">
            no. {row.number}, from <Code>{row.by}</Code>
          </span>
        ),
        times: (
          <>
            <p>
              recorded <Ago at={row.at} />
            </p>
            <p>
              its file was written <Ago at={row.written_at} />
            </p>
          </>
        ),
        actions: (
          <Button
            data-row=""
            aria-expanded={row.number === chosen}
            aria-label={`${row.number === chosen ? "hide" : "show"} ${row.version}`}
            onClick={() => choose(row.number === chosen ? null : row.number)}
          >
            {row.number === chosen ? "Hide" : "Show"}
          </Button>
        ),
      }))}
    />
  );
}

function Older({ number }: { number: number }) {
  const query = useSnapshot<PolicyDetail>([...TOPIC, String(number)], `/policies/${number}`);
  return (
    <section aria-label={`policy ${number}`} className="mt-4 border-t border-line pt-4">
      <Shown query={query} lines={8}>
        {(policy) => <PolicyShown policy={policy} />}
      </Shown>
    </section>
  );
}

const FORMS = { words: "In words", yaml: "As YAML" };

function PolicyShown({ policy }: { policy: PolicyDetail }) {
  const [form, setForm] = useState<keyof typeof FORMS>("words");
  const content = contentOf(policy.policy);
  return (
    <div className="space-y-3">
      <Facts
        rows={[
          ["version", <span key="v" className="font-mono text-xs break-all">{policy.version}</span>],
          ["from", <Code key="by">{policy.by}</Code>],
          ["recorded", <Ago key="at" at={policy.at} />],
          ["SHA-256", <span key="sha" className="font-mono text-xs break-all">{policy.sha256}</span>],
        ]}
      />
      {policy.warnings.length > 0 && (
        <ul aria-label="warnings" className="space-y-1 rounded-md border border-warn bg-warn-soft p-3">
          {policy.warnings.map((warning) => (
            <li key={warning} className="break-words">
              {warning}
            </li>
          ))}
        </ul>
      )}
      <Choice label="shown as" names={FORMS} chosen={form} choose={setForm} />
      {form === "words" && content && <PolicyWords policy={content} />}
      {form === "words" && !content && (
        <p className="text-muted">Another release has recorded it: it is told as YAML alone.</p>
      )}
      {form === "yaml" && <Yaml text={policy.text} whole={content === null} />}
      <Raw value={policy.policy} label="whole, with every default, as JSON" />
    </div>
  );
}

function Yaml({ text, whole }: { text: string; whole: boolean }) {
  return (
    <div>
      {!whole && <p className="text-muted">Without what is as the defaults are; it means the same.</p>}
      <pre tabIndex={0} aria-label="policy as YAML" className="mt-2 max-h-96 overflow-auto rounded bg-raised p-3 font-mono text-xs">
        {text}
      </pre>
      <CopyText name="Copy" text={text} />
    </div>
  );
}

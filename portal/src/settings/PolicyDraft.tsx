/** A draft of a policy: the API says what is wrong with it and where; the file puts it in force. */
import { useRef, useState, type KeyboardEvent, type RefObject } from "react";
import { call } from "../api/client";
import type { Finding, PolicyCheck, PolicyDetail } from "../api/types";
import { useStaleReason } from "../shell/Connection";
import { Badge, Button, Code, Panel, classes } from "../ui/basics";
import { ProblemNote } from "../ui/problem";
import { CopyText } from "./parts";

const MOST_CHARACTERS = 32_000;

interface Checked {
  text: string;
  found: PolicyCheck;
}

export function PolicyDraft({ current }: { current: PolicyDetail | undefined }) {
  const [text, setText] = useState("");
  const [checked, setChecked] = useState<Checked | null>(null);
  const [failed, setFailed] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const stale = useStaleReason();
  const field = useRef<HTMLTextAreaElement>(null);
  const why = busy ? "being checked" : (stale ?? (text.trim() === "" ? "the draft is empty" : null));
  const check = async () => {
    if (why !== null) return;
    setBusy(true);
    setFailed(null);
    try {
      const { data } = await call<PolicyCheck>("/policies/check", { method: "POST", body: { policy: text } });
      setChecked({ text, found: data });
    } catch (error) {
      setFailed(error);
    }
    setBusy(false);
  };
  const goTo = (line: number) => {
    const begin = text.split("\n").slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
    const end = text.indexOf("\n", begin);
    field.current?.focus();
    field.current?.setSelectionRange(begin, end < 0 ? text.length : end);
  };
  return (
    <Panel
      title="A draft"
      aside={
        <span className="flex flex-wrap gap-2">
          <Button
            why={current ? null : "the policy in force is not known"}
            onClick={() => setText(current?.text ?? "")}
          >
            Begin with the one in force
          </Button>
          <Button look="primary" why={why} onClick={() => void check()}>
            Check
          </Button>
        </span>
      }
    >
      <p className="mb-2 text-muted">
        The text of a policy file, YAML. Checking writes nothing. Ctrl+Enter checks.
      </p>
      <Editor
        field={field}
        text={text}
        findings={checked?.found.findings ?? []}
        change={setText}
        check={() => void check()}
      />
      <div className="mt-3 space-y-3" aria-live="polite">
        {failed !== null && <ProblemNote error={failed} />}
        {checked && checked.text !== text && (
          <p className="text-muted">You have edited it since: this is about the text before.</p>
        )}
        {checked && (
          <div className={classes("space-y-3", checked.text !== text && "opacity-60")}>
            <Verdict found={checked.found} inForce={current?.sha256} />
            <Findings findings={checked.found.findings} lines={checked.text.split("\n")} goTo={goTo} />
          </div>
        )}
        {checked?.found.ok && checked.text === text && <HowItGetsInForce text={text} current={current} />}
      </div>
    </Panel>
  );
}

interface EditorProps {
  field: RefObject<HTMLTextAreaElement | null>;
  text: string;
  findings: Finding[];
  change: (text: string) => void;
  check: () => void;
}

const LINE = "font-mono text-xs leading-5";

/** A text field with numbered lines; those that something was found on are marked. */
function Editor({ field, text, findings, change, check }: EditorProps) {
  const numbers = useRef<HTMLOListElement>(null);
  const keys = (event: KeyboardEvent) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    check();
  };
  return (
    <div className="flex h-96 overflow-hidden rounded-md border border-line bg-ground">
      <ol ref={numbers} aria-hidden="true" className={classes(LINE, "shrink-0 overflow-hidden py-2 text-right text-muted select-none")}>
        {text.split("\n").map((_, index) => {
          const here = findings.filter(({ line }) => line === index + 1);
          const bad = here.some(({ kind }) => kind === "error");
          return (
            <li
              key={index}
              data-found={here[0] ? (bad ? "error" : "warning") : undefined}
              className={classes("px-2", here[0] && (bad ? "bg-bad-soft text-bad" : "bg-warn-soft text-warn"))}
            >
              {here[0] && (bad ? "✕ " : "! ")}
              {index + 1}
            </li>
          );
        })}
      </ol>
      <textarea
        ref={field}
        aria-label="draft of the policy"
        wrap="off"
        spellCheck={false}
        maxLength={MOST_CHARACTERS}
        value={text}
        placeholder={"name: careful\nmax_moving: 1"}
        onChange={(event) => change(event.target.value)}
        onKeyDown={keys}
        onScroll={(event) => numbers.current?.scrollTo(0, event.currentTarget.scrollTop)}
        className={classes(LINE, "min-w-0 flex-1 resize-none border-l -outline-offset-2 border-line bg-panel px-3 py-2 placeholder:text-muted")}
      />
    </div>
  );
}

function Verdict({ found, inForce }: { found: PolicyCheck; inForce: string | undefined }) {
  if (!found.ok) {
    return (
      <p>
        <Badge tone="bad">not a policy</Badge> It would change nothing: the one in force would stay.
      </p>
    );
  }
  return (
    <p>
      <Badge tone={found.warnings.length > 0 ? "warn" : "good"}>a good policy</Badge>{" "}
      <span className="font-mono text-xs">{found.version}</span>
      {found.sha256 === inForce && ", which is in force"}
    </p>
  );
}

interface FindingsProps {
  findings: Finding[];
  lines: string[];
  goTo: (line: number) => void;
}

function Findings({ findings, lines, goTo }: FindingsProps) {
  if (findings.length === 0) return null;
  const sorted = findings.toSorted((one, other) => (one.line ?? 0) - (other.line ?? 0));
  return (
    <ul aria-label="findings" className="space-y-2">
      {sorted.map(({ kind, says, line }, index) => (
        <li key={index} className={classes("rounded-md border p-2", kind === "error" ? "border-bad" : "border-warn")}>
          <div className="flex flex-wrap items-center gap-2">
            <Badge tone={kind === "error" ? "bad" : "warn"}>{kind}</Badge>
            {line !== null && (
              <>
                <Button look="quiet" onClick={() => goTo(line)}>
                  line {line}
                </Button>
                <Code>{lines[line - 1]?.trim()}</Code>
              </>
            )}
          </div>
          <p className="mt-1 break-words">{says}</p>
        </li>
      ))}
    </ul>
  );
}

function HowItGetsInForce({ text, current }: { text: string; current: PolicyDetail | undefined }) {
  const file = current?.by.startsWith("file:") ? current.by.slice("file:".length) : null;
  return (
    <section aria-label="how it gets in force" className="rounded-md border border-line bg-ground p-3">
      <h3 className="font-semibold">This page cannot put it in force: the file does</h3>
      <ol className="mt-1 list-decimal space-y-1 pl-5">
        <li>
          Save it as the policy file{" "}
          {file ? (
            <>
              (the one in force came from <Code>{file}</Code>; if that is the fleet file, under its key{" "}
              <Code>rules</Code>)
            </>
          ) : (
            <>that the fleet file names</>
          )}
          .
        </li>
        <li>
          <Code>optiinfra config check</Code> there says the same as this page.
        </li>
        <li>
          The coordinator looks at the file every second, records it, and decides under it from then
          on; this page shows it then. A file that is wrong changes nothing, and{" "}
          <Code>optiinfra doctor</Code> tells of it.
        </li>
      </ol>
      <CopyText name="Copy the draft" text={text} />
    </section>
  );
}

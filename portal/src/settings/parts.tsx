/** What the settings are made of: who may not see them, a form in a dialog, a text to be copied. */
import { useRef, useState, type FormEvent, type ReactNode } from "react";
import type { Permission } from "../api/types";
import { useStaleReason } from "../shell/Connection";
import { useSession } from "../shell/session";
import { Badge, Button, classes, Panel } from "../ui/basics";
import { Dialog } from "../ui/dialog";
import { ProblemNote } from "../ui/problem";
import { LEAST_ROLE } from "./rights";

export const FIELD = "mt-1 block w-full rounded-md border border-line bg-panel px-3 py-2";

/** Stands in place of what the role may not see: nothing is asked of the API. */
export function Forbidden({ title, permission }: { title: string; permission: Permission }) {
  const who = useSession();
  return (
    <Panel title={title} aside={<Badge tone="warn">forbidden</Badge>}>
      <p>
        This needs the role <strong>{LEAST_ROLE[permission]}</strong>; you are {who?.role ?? "nobody"}.
      </p>
      <p className="mt-1 text-muted">An admin can give you another role, in Settings, People.</p>
    </Panel>
  );
}

export interface RowParts {
  key: string;
  /** What it is, in one or two lines. */
  name: ReactNode;
  about: ReactNode;
  times: ReactNode;
  actions: ReactNode;
}

/** A list whose rows fold where the screen is narrow, so that what can be done stays in sight. */
export function Rows({ label, rows }: { label: string; rows: RowParts[] }) {
  return (
    <ul aria-label={label} className="divide-y divide-line">
      {rows.map(({ key, name, about, times, actions }) => (
        <li key={key} className="flex flex-wrap items-center gap-x-6 gap-y-1 py-2">
          <div className="min-w-0 grow basis-60">{name}</div>
          <div className="min-w-0 basis-52">{about}</div>
          <div className="basis-56 text-muted">{times}</div>
          <div className="flex w-44 shrink-0 flex-wrap gap-2 sm:justify-end">{actions}</div>
        </li>
      ))}
    </ul>
  );
}

interface DeedProps {
  title: string;
  verb: string;
  danger?: boolean;
  /** What is missing before it can be sent. */
  missing?: string | null;
  send: () => Promise<void>;
  onClose: () => void;
  children: ReactNode;
}

/** Asks for what a deed needs, sends it, and shows what the API says against it. */
export function DeedDialog({ title, verb, danger, missing = null, send, onClose, children }: DeedProps) {
  const [sending, setSending] = useState(false);
  const [refused, setRefused] = useState<unknown>(null);
  const stale = useStaleReason();
  const why = sending ? "waiting for the answer" : (stale ?? missing);
  const submit = async (event: FormEvent) => {
    event.preventDefault();
    if (why !== null) return;
    setSending(true);
    setRefused(null);
    try {
      await send();
    } catch (error) {
      setRefused(error);
    }
    setSending(false);
  };
  return (
    <Dialog title={title} onClose={onClose}>
      <form onSubmit={(event) => void submit(event)} className="space-y-3">
        {children}
        {refused !== null && <ProblemNote error={refused} />}
        <div className="flex flex-wrap items-center gap-2">
          <Button type="submit" look={danger ? "danger" : "primary"} why={why}>
            {verb}
          </Button>
          <Button onClick={onClose}>Cancel</Button>
          {why && <span className="text-sm text-muted">{why}</span>}
        </div>
      </form>
    </Dialog>
  );
}

/** A text in one line with a button that copies it; where the browser forbids that, it is marked. */
export function Copied({ label, value }: { label: string; value: string }) {
  const [told, setTold] = useState("");
  const field = useRef<HTMLInputElement>(null);
  return (
    <div>
      <label className="block">
        {label}
        <input
          ref={field}
          readOnly
          value={value}
          onFocus={(event) => event.target.select()}
          className={`${FIELD} font-mono text-xs`}
        />
      </label>
      <div className="mt-2 flex items-center gap-2">
        <Button onClick={() => void copy(value).then((done) => {
          if (!done) field.current?.focus();
          setTold(done ? "copied" : "marked: copy it with the keyboard");
        })}>
          Copy
        </Button>
        <span role="status" className="text-sm text-muted">
          {told}
        </span>
      </div>
    </div>
  );
}

/** Copies a text that stands on the page. */
export function CopyText({ name, text }: { name: string; text: string }) {
  const [copied, setCopied] = useState<boolean | null>(null);
  return (
    <div className="mt-2 flex flex-wrap items-center gap-2">
      <Button onClick={() => void copy(text).then(setCopied)}>{name}</Button>
      <span role="status" className="text-sm text-muted">
        {copied === null ? "" : copied ? "copied" : "the browser does not allow it here: mark the text"}
      </span>
    </div>
  );
}

interface ChoiceProps<T extends string> {
  label: string;
  names: Record<T, string>;
  chosen: T;
  choose: (one: T) => void;
}

/** One of a few, side by side. */
export function Choice<T extends string>({ label, names, chosen, choose }: ChoiceProps<T>) {
  return (
    <div role="group" aria-label={label} className="flex flex-wrap gap-1">
      {(Object.entries(names) as [T, string][]).map(([one, name]) => (
        <button
          key={one}
          type="button"
          aria-pressed={one === chosen}
          onClick={() => choose(one)}
          className={classes(
            "rounded-md px-2 py-1 text-sm",
            one === chosen ? "bg-accent-soft font-semibold text-accent" : "text-muted hover:bg-raised",
          )}
        >
          {name}
        </button>
      ))}
    </div>
  );
}

/** Whether it was copied: browsers allow it on this machine and behind TLS. */
async function copy(text: string): Promise<boolean> {
  const clipboard = navigator.clipboard as Clipboard | undefined;
  if (clipboard === undefined) return false;
  try {
    await clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

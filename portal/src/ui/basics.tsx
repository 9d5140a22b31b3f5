/** The small parts that every page is made of. */
import type { ComponentProps, ReactNode } from "react";
import { useEffect, useState } from "react";
import { dayAndClock, relative } from "../format";

export function classes(...names: (string | false | null | undefined)[]): string {
  return names.filter(Boolean).join(" ");
}

export type Tone = "plain" | "accent" | "good" | "warn" | "bad";

const TONES: Record<Tone, string> = {
  plain: "bg-raised text-ink",
  accent: "bg-accent-soft text-accent",
  good: "bg-good-soft text-good",
  warn: "bg-warn-soft text-warn",
  bad: "bg-bad-soft text-bad",
};
const SIGNS: Record<Tone, string> = { plain: "", accent: "●", good: "✓", warn: "!", bad: "✕" };

/** A word with a sign and a colour, so that none of them says it alone. */
export function Badge({ tone = "plain", children }: { tone?: Tone; children: ReactNode }) {
  return (
    <span
      className={classes(
        "inline-flex items-center gap-1 rounded px-1.5 py-0.5 text-xs font-medium whitespace-nowrap",
        TONES[tone],
      )}
    >
      {SIGNS[tone] && <span aria-hidden="true">{SIGNS[tone]}</span>}
      {children}
    </span>
  );
}

type ButtonProps = ComponentProps<"button"> & {
  look?: "plain" | "primary" | "danger" | "quiet";
  /** Why it cannot be used now; it is then said below the pointer and to screen readers. */
  why?: string | null;
};

const LOOKS = {
  plain: "border border-line bg-panel text-ink hover:bg-raised",
  primary: "border border-accent bg-accent text-on-accent hover:opacity-90",
  danger: "border border-bad bg-panel text-bad hover:bg-bad-soft",
  quiet: "text-accent hover:bg-accent-soft",
};

export function Button({ look = "plain", why, className, ...rest }: ButtonProps) {
  return (
    <button
      type="button"
      {...rest}
      aria-disabled={why ? true : undefined}
      title={why ?? rest.title}
      onClick={why ? undefined : rest.onClick}
      className={classes(
        "inline-flex min-h-8 items-center justify-center gap-1.5 rounded-md px-3 py-1 text-sm font-medium",
        why ? "cursor-not-allowed border border-dashed border-line bg-ground text-muted" : LOOKS[look],
        className,
      )}
    />
  );
}

interface PanelProps {
  title: string;
  aside?: ReactNode;
  children: ReactNode;
  className?: string;
  dimmed?: boolean;
}

export function Panel({ title, aside, children, className, dimmed }: PanelProps) {
  return (
    <section className={classes("min-w-0 rounded-lg border border-line bg-panel", className)}>
      <header className="flex flex-wrap items-center justify-between gap-2 border-b border-line px-4 py-2">
        <h2 className="text-sm font-semibold">{title}</h2>
        {aside}
      </header>
      <div className={classes("p-4", dimmed && "opacity-60")}>{children}</div>
    </section>
  );
}

export function Empty({ why, next }: { why: string; next?: ReactNode }) {
  return (
    <div className="py-6 text-center">
      <p className="font-medium">{why}</p>
      {next && <p className="mt-1 text-muted">{next}</p>}
    </div>
  );
}

export function Code({ children }: { children: ReactNode }) {
  return <code className="rounded bg-raised px-1 py-0.5 font-mono text-xs text-ink">{children}</code>;
}

/** As large as what will stand there. */
export function Skeleton({ lines = 3, height = "h-5" }: { lines?: number; height?: string }) {
  return (
    <div role="status" aria-label="loading" className="space-y-2">
      {Array.from({ length: lines }, (_, line) => (
        <div key={line} className={classes("animate-pulse rounded bg-raised", height)} />
      ))}
    </div>
  );
}

/** The time, once a second, for ages. */
export function useNow(everyMs = 1_000): number {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    const ticking = window.setInterval(() => setNow(Date.now()), everyMs);
    return () => window.clearInterval(ticking);
  }, [everyMs]);
  return now;
}

export function Ago({ at }: { at: string }) {
  const now = useNow(5_000);
  return (
    <time dateTime={at} title={dayAndClock(at)} className="whitespace-nowrap">
      {relative(at, now)}
    </time>
  );
}

/** Pairs of a name and a value. */
export function Facts({ rows }: { rows: [string, ReactNode][] }) {
  return (
    <dl className="grid grid-cols-[auto_1fr] gap-x-4 gap-y-1">
      {rows.map(([name, value]) => (
        <div key={name} className="contents">
          <dt className="text-muted">{name}</dt>
          <dd className="min-w-0 break-words">{value}</dd>
        </div>
      ))}
    </dl>
  );
}

interface RawProps {
  value: unknown;
  label?: string;
  open?: boolean;
}

export function Raw({ value, label = "as JSON", open = false }: RawProps) {
  return (
    <details open={open}>
      <summary className="w-fit text-accent">{label}</summary>
      <pre
        tabIndex={0}
        aria-label={label}
        className="mt-2 max-h-96 overflow-auto rounded bg-raised p-3 font-mono text-xs"
      >
        {JSON.stringify(value, null, 2)}
      </pre>
    </details>
  );
}

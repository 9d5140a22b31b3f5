/** The recorded log under another policy: which decisions would differ, why, and for how much. */
import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { useState } from "react";
import { call } from "../api/client";
import type { components } from "../api/schema";
import type { Difference, Interval, WhatIf as Found } from "../api/types";
import { count, dayAndClock, seconds, UNKNOWN, words } from "../format";
import { useLive } from "../live/context";
import { keptScope } from "../shell/keys";
import { Button, Code, Empty, Facts, Panel, Skeleton } from "../ui/basics";
import { problemIn, ProblemNote } from "../ui/problem";

type Check = components["schemas"]["CheckView"];
type Policy = components["schemas"]["PolicyDetail"];

const DAY_MS = 86_400_000;
const BACK: [string, number][] = [
  ["1 hour", DAY_MS / 24],
  ["24 hours", DAY_MS],
  ["7 days", 7 * DAY_MS],
  ["30 days", 30 * DAY_MS],
  ["90 days", 90 * DAY_MS],
];
const WITHIN_MS = 120_000;
const NO_POLICY = 404;

/** What is written as a policy, or why it is none. */
function parsed(text: string): { policy: Record<string, unknown> } | { wrong: string } {
  try {
    const policy: unknown = JSON.parse(text);
    if (typeof policy === "object" && policy !== null && !Array.isArray(policy)) {
      return { policy: policy as Record<string, unknown> };
    }
    return { wrong: "a policy is an object: { … }" };
  } catch (failed) {
    return { wrong: `this is no JSON: ${failed instanceof Error ? failed.message : String(failed)}` };
  }
}

/** The policy in force as a beginning; an empty one where none was ever recorded. */
export function WhatIf() {
  const current = useQuery<Policy | null>({
    queryKey: ["policies", "current"],
    queryFn: async () => {
      try {
        return (await call<Policy>("/policies/current")).data;
      } catch (failed) {
        if (problemIn(failed).status === NO_POLICY) return null;
        throw failed;
      }
    },
  });
  if (current.isError) return <ProblemNote error={current.error} />;
  if (current.data === undefined) return <Skeleton lines={10} height="h-7" />;
  return <Trial current={current.data} />;
}

type Outcome =
  | { of: "nothing" | "work" }
  | { of: "check"; check: Check }
  | { of: "found"; found: Found; check: Check }
  | { of: "failure"; failure: unknown };

function Trial({ current }: { current: Policy | null }) {
  const [text, setText] = useState(() => JSON.stringify(current?.policy ?? {}, null, 2));
  const [back, setBack] = useState(DAY_MS);
  const [outcome, setOutcome] = useState<Outcome>({ of: "nothing" });
  const { status } = useLive();
  const written = parsed(text);
  const why =
    status === "disconnected"
      ? "the API does not answer now"
      : outcome.of === "work"
        ? "it is being worked on"
        : "wrong" in written
          ? written.wrong
          : null;

  const work = async (run: boolean) => {
    if ("wrong" in written) return;
    setOutcome({ of: "work" });
    try {
      const body = { policy: written.policy };
      const check = (await call<Check>("/policies/check", { method: "POST", body })).data;
      if (!run || !check.ok) {
        setOutcome({ of: "check", check });
        return;
      }
      const since = new Date(Date.now() - back).toISOString();
      const asked = { method: "POST", body: { ...body, since }, within: WITHIN_MS } as const;
      setOutcome({ of: "found", check, found: (await call<Found>("/what-if", asked)).data });
    } catch (failure) {
      setOutcome({ of: "failure", failure });
    }
  };
  return (
    <div className="grid items-start gap-4 xl:grid-cols-[minmax(20rem,30rem)_1fr]">
      <Panel title="The other policy">
        <p id="policy-about" className="mb-2 text-muted">
          {current
            ? `It begins as ${current.version}, which is in force. Edit it, or paste another one, as JSON.`
            : "No policy was recorded yet: this is the default one. Edit it, or paste another one, as JSON."}
        </p>
        <textarea
          aria-label="policy as JSON"
          aria-describedby="policy-about"
          aria-invalid={"wrong" in written}
          spellCheck={false}
          rows={18}
          value={text}
          onChange={(event) => setText(event.target.value)}
          className="w-full rounded-md border border-line bg-ground p-2 font-mono text-xs text-ink"
        />
        {"wrong" in written && <p className="text-bad">{written.wrong}</p>}
        <div className="mt-3 flex flex-wrap items-center gap-2">
          <label className="flex items-center gap-2 text-sm">
            changes begun in the last
            <select
              value={back}
              onChange={(event) => setBack(Number(event.target.value))}
              className="min-h-8 rounded-md border border-line bg-panel px-2 py-1 text-ink"
            >
              {BACK.map(([name, ms]) => (
                <option key={name} value={ms}>
                  {name}
                </option>
              ))}
            </select>
          </label>
          <Button look="primary" why={why} onClick={() => void work(true)}>
            What if?
          </Button>
          <Button why={why} onClick={() => void work(false)}>
            Only check it
          </Button>
        </div>
        <p className="mt-2 text-xs text-muted">
          Nothing is written. The same on the command line: <Code>optiinfra what-if --policy FILE</Code>
        </p>
      </Panel>
      <Panel title="What would differ">
        <Told outcome={outcome} />
      </Panel>
    </div>
  );
}

function Told({ outcome }: { outcome: Outcome }) {
  switch (outcome.of) {
    case "nothing":
      return <Empty why="No other policy was tried yet." next="Edit the policy and ask “What if?”." />;
    case "work":
      return <Skeleton lines={6} height="h-7" />;
    case "failure":
      return <ProblemNote error={outcome.failure} />;
    case "check":
      return <Checked check={outcome.check} />;
    case "found":
      return (
        <div className="space-y-3">
          <Checked check={outcome.check} />
          <Differences found={outcome.found} />
        </div>
      );
  }
}

function Checked({ check }: { check: Check }) {
  return (
    <div role={check.ok ? "status" : "alert"}>
      <p className={check.ok ? "text-good" : "font-semibold text-bad"}>
        {check.ok ? `✓ The policy is right: ${check.version}` : "✕ The policy is not right, so nothing was tried."}
      </p>
      <ul className="list-disc pl-5">
        {check.errors.map((one) => (
          <li key={one}>{one}</li>
        ))}
        {check.warnings.map((one) => (
          <li key={one} className="text-warn">
            {one}
          </li>
        ))}
      </ul>
    </div>
  );
}

function Differences({ found }: { found: Found }) {
  const { differences, changes, unknown } = found;
  return (
    <>
      <p role="status">
        <strong>
          {count(differences.length)} of {count(changes)} changes differ
        </strong>
        ; a month, {total(found, "realised")} realised and {total(found, "predicted")} predicted (+ is saved by the
        other policy); {count(unknown)} without a known effect.{" "}
        <span className="text-muted">
          {count(found.events)} events were read, of changes of all deployments begun since {dayAndClock(found.since)}.
        </span>
      </p>
      {differences.length === 0 ? (
        <Empty
          why={changes === 0 ? "No change was begun in this time." : "Every decision would have been the same."}
          next={changes === 0 ? "Choose a longer time." : undefined}
        />
      ) : (
        <ol aria-label="decisions that differ" className="space-y-2">
          {differences.map((one) => (
            <Card key={one.change} one={one} />
          ))}
        </ol>
      )}
    </>
  );
}

function Card({ one }: { one: Difference }) {
  return (
    <li className="space-y-2 rounded-md border border-line p-3">
      <p>
        <Link
          to="/executions"
          search={(before) => ({ ...keptScope(before), id: one.change })}
          className="font-medium text-accent underline"
        >
          {one.title}
        </Link>{" "}
        <span className="text-xs text-muted">
          {one.deployment}, parted {dayAndClock(one.at)}
        </span>
      </p>
      <Facts
        rows={[
          ["recorded", <Way said={one.recorded} end={one.recorded_end} />],
          ["other policy", <Way said={one.other} end={one.other_end} />],
          ["why", one.why || "–"],
          ["effect", effect(one)],
        ]}
      />
    </li>
  );
}

function Way({ said, end }: { said: string; end: string }) {
  return (
    <>
      {said} <span className="text-muted">(in the end: {words(end)})</span>
    </>
  );
}

/** A sum of which no part is known is not 0. */
function total(found: Found, basis: "realised" | "predicted"): string {
  const known = found.differences.some((one) => one.effect.basis === basis);
  return known ? money(found[basis]) : UNKNOWN;
}

/** In the words of the command line; what is not known is said to be so. */
function effect({ effect: { basis, usd_per_month, ttft_p95_s } }: Difference): string {
  if (basis === "none") return "none: it is carried out, or not, in both";
  if (!usd_per_month) return "unknown";
  const slo = typeof ttft_p95_s === "number" ? `, TTFT p95 was ${seconds(ttft_p95_s)}` : "";
  if (basis === "unknown") return `unknown; at stake ${money(usd_per_month)} a month${slo}`;
  return `${money(usd_per_month)} a month, ${basis}${slo}`;
}

const dollars = new Intl.NumberFormat("en-US", {
  style: "currency", currency: "USD", maximumFractionDigits: 0, signDisplay: "exceptZero",
});

function money({ low, mid, high }: Interval): string {
  const told = dollars.format(mid);
  return low === high ? told : `${told} (${dollars.format(low)} … ${dollars.format(high)})`;
}

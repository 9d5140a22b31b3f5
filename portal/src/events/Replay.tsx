/** A range of the log played again, step by step, beside how every change stood at that moment. */
import { Link, useNavigate, useSearch } from "@tanstack/react-router";
import { useMemo, useState } from "react";
import type { EventRow, ReplayRow } from "../api/types";
import { clock, count, dayAndClock, words } from "../format";
import { keptScope } from "../shell/keys";
import { RANGE_NAMES, sinceOf, useScope } from "../shell/scope";
import { Badge, Button, classes, Empty, Panel, Skeleton } from "../ui/basics";
import { ProblemNote, Shown } from "../ui/problem";
import { StateBadge } from "../ui/states";
import { Table } from "../ui/table";
import { MOST_ROWS, useEventLog } from "./log";
import { MOST_CHANGES, stoodAt, useFolded, usePlayer, type Folded, type Player, type Stood } from "./replaying";
import { summaryOf } from "./words";

const SPEEDS = [1, 10, 60, 600, 3_600] as const;
const AROUND = 3;
const FIELD = "min-h-8 rounded-md border border-line bg-panel px-2 py-1 text-sm text-ink";

/** A time as a field for it has it (local, without a zone), and back; "" is none. */
function timeIn(field: string): string | undefined {
  const at = Date.parse(field);
  return Number.isNaN(at) ? undefined : new Date(at).toISOString();
}

export function Replay() {
  const { range, deployment } = useScope();
  const { change } = useSearch({ from: "/events" });
  const [from, setFrom] = useState("");
  const [to, setTo] = useState("");
  const [now, setNow] = useState(() => new Date().toISOString());
  const { query, progress } = useEventLog(range);
  const begin = useMemo(() => sinceOf(range), [range, now]);
  const since = timeIn(from) ?? begin;
  const until = timeIn(to) ?? now;
  const backwards = since >= until;
  const folded = useFolded({ since, until, change });
  const rows = query.data?.rows;
  const events = useMemo(
    () =>
      (rows ?? []).filter(
        ({ at, chain }) =>
          Date.parse(at) >= Date.parse(since) && Date.parse(at) < Date.parse(until) && (!change || chain === change),
      ),
    [rows, since, until, change],
  );
  return (
    <>
      <div className="flex flex-wrap items-end gap-3">
        <label className="text-xs text-muted">
          from
          <input
            type="datetime-local"
            step={1}
            value={from}
            onChange={(event) => setFrom(event.target.value)}
            className={classes(FIELD, "block")}
          />
        </label>
        <label className="text-xs text-muted">
          until
          <input
            type="datetime-local"
            step={1}
            value={to}
            onChange={(event) => setTo(event.target.value)}
            className={classes(FIELD, "block")}
          />
        </label>
        <ChangeChoice folded={folded.data} change={change} />
        {to === "" && <Button onClick={() => setNow(new Date().toISOString())}>Up to now</Button>}
        <p className="text-sm text-muted">
          {from === "" && `The ${RANGE_NAMES[range]}, `}
          {to === "" ? `up to ${clock(until)}. ` : ""}Nothing is written and nothing in use is asked.
        </p>
      </div>
      {backwards && <Empty why="The range ends before it begins." next="Choose an earlier beginning." />}
      {query.isError && <ProblemNote error={query.error} />}
      {query.data?.cut && (
        <p className="text-warn">
          The range holds more: the first {count(MOST_ROWS)} events can be played. Choose a shorter range.
        </p>
      )}
      {folded.data?.cut && (
        <p className="text-warn">Only the first {count(MOST_CHANGES)} changes are shown. Choose a shorter range.</p>
      )}
      {rows === undefined && !query.isError && (
        <>
          <p role="status" className="text-sm text-muted">reading, {count(progress)} so far</p>
          <Skeleton lines={8} height="h-7" />
        </>
      )}
      {rows !== undefined && !backwards && events.length === 0 && (
        <Empty
          why={change ? "Nothing was said of this change in the range." : "Nothing was said in the range."}
          next="Choose a longer one above."
        />
      )}
      {!backwards && events.length > 0 && (
        <Shown query={folded} lines={8} height="h-7">
          {({ changes }) => (
            <Scoped key={`${since} ${until} ${change} ${deployment}`} {...{ events, changes, deployment }} />
          )}
        </Shown>
      )}
    </>
  );
}

function ChangeChoice({ folded, change }: { folded: Folded | undefined; change: string | undefined }) {
  const navigate = useNavigate({ from: "/events" });
  const [known, setKnown] = useState<ReplayRow[]>([]);
  if (folded && !change && folded.changes !== known) setKnown(folded.changes);
  const listed = change && !known.some((one) => one.change === change) ? [...known, ...(folded?.changes ?? [])] : known;
  return (
    <label className="min-w-0 text-xs text-muted">
      change
      <select
        aria-label="change"
        value={change ?? ""}
        className={classes(FIELD, "block max-w-64")}
        onChange={(event) => {
          const chosen = event.target.value;
          void navigate({
            replace: true,
            search: ({ change: _, ...rest }) => (chosen ? { ...rest, change: chosen } : rest),
          });
        }}
      >
        <option value="">all changes</option>
        {listed.map((one) => (
          <option key={one.change} value={one.change}>
            {one.title ?? one.change.slice(0, 8)} ({one.change.slice(0, 8)})
          </option>
        ))}
      </select>
    </label>
  );
}

/** What is about the deployment that is chosen for all pages, if one is. */
function Scoped({ events, changes, deployment }: { events: EventRow[]; changes: ReplayRow[]; deployment: string }) {
  const [itsChanges, itsEvents] = useMemo(() => {
    if (deployment === "") return [changes, events];
    const found = changes.filter((one) => one.deployment === deployment);
    const chains = new Set(found.map((one) => one.change));
    return [found, events.filter((one) => chains.has(one.chain) || one.fact["deployment"] === deployment)];
  }, [events, changes, deployment]);
  if (itsEvents.length === 0) {
    return <Empty why={`Nothing was said of ${deployment} in the range.`} next="Choose all deployments above." />;
  }
  return <Stage events={itsEvents} changes={itsChanges} />;
}

/** The player and what it shows; `changes` are folded, so that a step asks nobody. */
function Stage({ events, changes }: { events: EventRow[]; changes: ReplayRow[] }) {
  const [speed, setSpeed] = useState<number>(60);
  const player = usePlayer(events, speed);
  const last = events[player.at - 1];
  const position = last?.position ?? (events[0]?.position ?? 0) - 1;
  const stood = useMemo(() => stoodAt(changes, position), [changes, position]);
  return (
    <div className="space-y-3">
      <Controls player={player} events={events} speed={speed} onSpeed={setSpeed} />
      <div className="grid items-start gap-3 xl:grid-cols-[24rem_1fr]">
        <Panel title="What was said">
          <Around events={events} player={player} />
        </Panel>
        <Panel title="How the changes stood" aside={<Counts stood={stood} />}>
          {stood.length === 0 ? (
            <Empty why="No change was open yet." next="Step forward to see the first one begin." />
          ) : (
            <Table
              label="how the changes stood"
              head={["change", "state", "stage", "why", "since"]}
              rows={stood.map((one) => rowOf(one, last))}
            />
          )}
        </Panel>
      </div>
    </div>
  );
}

function rowOf({ change, step }: Stood, last: EventRow | undefined) {
  const moved = step.position === last?.position;
  return [
    <span key="change" className="block min-w-40">
      <Link
        to="/executions"
        search={(before) => ({ ...keptScope(before), id: change.change })}
        className="text-accent underline"
      >
        {change.title ?? change.change.slice(0, 8)}
      </Link>{" "}
      <span className="text-xs text-muted">{change.deployment ?? "–"}</span>
    </span>,
    <span key="state" className="flex flex-wrap gap-1">
      <StateBadge state={step.state} />
      {moved && <Badge tone="accent">moved now</Badge>}
    </span>,
    step.stage === null ? "–" : step.stage + 1,
    step.why ?? "–",
    <time key="since" dateTime={step.at} className="whitespace-nowrap">
      {dayAndClock(step.at)}
    </time>,
  ];
}

function Counts({ stood }: { stood: Stood[] }) {
  const states = new Map<string, number>();
  for (const { step } of stood) states.set(step.state, (states.get(step.state) ?? 0) + 1);
  return (
    <p className="text-xs text-muted">
      {[...states].map(([state, number]) => `${count(number)} ${words(state)}`).join(" · ") || "none"}
    </p>
  );
}

interface ControlsProps {
  player: Player;
  events: EventRow[];
  speed: number;
  onSpeed: (speed: number) => void;
}

function Controls({ player, events, speed, onSpeed }: ControlsProps) {
  const { at, playing, go, play, pause } = player;
  const event = events[at - 1];
  const told = event ? `${dayAndClock(event.at)}: ${summaryOf(event.kind, event.fact)}` : "before the first event";
  const first = at === 0 ? "this is the beginning" : null;
  const over = at === events.length ? "this is the end" : null;
  return (
    <div className="space-y-2 rounded-lg border border-line bg-panel p-3">
      <input
        type="range"
        aria-label="event of the range"
        aria-valuetext={`${at} of ${events.length}, ${told}`}
        min={0}
        max={events.length}
        value={at}
        onChange={(change) => go(Number(change.target.value))}
        className="block w-full accent-(--accent)"
      />
      <div className="flex flex-wrap items-center gap-2">
        <Button onClick={() => go(0)} why={first}>To the start</Button>
        <Button onClick={() => go(at - 1)} why={first}>Step back</Button>
        <Button look="primary" onClick={playing ? pause : play}>{playing ? "Pause" : "Play"}</Button>
        <Button onClick={() => go(at + 1)} why={over}>Step forward</Button>
        <Button onClick={() => go(events.length)} why={over}>To the end</Button>
        <label className="flex items-center gap-2 text-sm">
          speed
          <select value={speed} className={FIELD} onChange={(change) => onSpeed(Number(change.target.value))}>
            {SPEEDS.map((one) => (
              <option key={one} value={one}>
                {count(one)} × real time
              </option>
            ))}
          </select>
        </label>
        <span className="text-sm text-muted">
          {count(at)} of {count(events.length)} events{event && `, ${dayAndClock(event.at)}`}
        </span>
      </div>
    </div>
  );
}

/** The event that was played last among those around it. */
function Around({ events, player }: { events: EventRow[]; player: Player }) {
  const here = player.at - 1;
  const begin = Math.max(0, here - AROUND);
  return (
    <ol className="space-y-0.5">
      {events.slice(begin, Math.max(here, 0) + AROUND + 1).map((event, offset) => {
        const number = begin + offset;
        return (
          <li key={event.id}>
            <button
              type="button"
              data-row={number === here ? "chosen" : ""}
              aria-current={number === here ? "step" : undefined}
              onClick={() => player.go(number + 1)}
              className={classes(
                "flex w-full gap-2 rounded-md px-2 py-1 text-left hover:bg-raised",
                number === here && "bg-accent-soft font-semibold",
                number > here && "text-muted",
              )}
            >
              <span className="font-mono text-xs leading-5">{clock(event.at)}</span>
              <span className="min-w-0 break-words">{summaryOf(event.kind, event.fact)}</span>
            </button>
          </li>
        );
      })}
    </ol>
  );
}

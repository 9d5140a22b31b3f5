/** The last hour as swim lanes: who did what, when. */
import { Link } from "@tanstack/react-router";
import { useMemo, useState } from "react";
import type { Lanes as Found } from "../api/types";
import { ChartPanel } from "../charts/ChartPanel";
import { ticks, useWidth } from "../charts/plot";
import { clock, count, UNKNOWN } from "../format";
import { useSnapshot } from "../live/context";
import { keptScope } from "../shell/keys";
import { useScope } from "../shell/scope";
import { Panel } from "../ui/basics";
import { Shown } from "../ui/problem";
import { itemsOf, toldOf, type Item } from "./lanes";
import { Track } from "./Track";

const TITLE = "The last hour, lane by lane";
const WINDOW_S = 3_600;
const EVERY_MS = 15_000;
const MOST_ROWS = 500;
/** So long a time is drawn at least; else from the first thing of the hour on. */
const LEAST_MS = 300_000;
const AXIS_PX = 18;
const LABEL_PX = 18;

export function Lanes() {
  const { deployment } = useScope();
  const path = `/lanes?window_s=${WINDOW_S}${deployment && `&deployment=${deployment}`}`;
  const query = useSnapshot<Found>(["events"], path, { every: EVERY_MS });
  return (
    <Shown query={query} lines={1} height="h-72">
      {(found) => <Shape found={found} />}
    </Shown>
  );
}

function Shape({ found }: { found: Found }) {
  const items = found.lanes.flatMap(itemsOf).sort((one, other) => other.since - one.since);
  if (items.length === 0) {
    return (
      <Panel title={TITLE}>
        <p className="text-muted">Nothing was said or done in the last hour. What agents, people and the coordinator do shows here within a second.</p>
      </Panel>
    );
  }
  return (
    <ChartPanel
      title={TITLE}
      about={<Notes found={found} items={items} />}
      size=""
      role="group"
      head={["from", "until", "who", "what", ""]}
      rows={items.slice(0, MOST_ROWS).map((item) => [
        clock(item.since),
        item.until === null ? "now" : item.until === item.since ? "" : clock(item.until),
        item.lane,
        `${item.look.sign} ${item.name}`,
        <Opened key="open" item={item} />,
      ])}
    >
      <Drawing found={found} />
    </ChartPanel>
  );
}

function Opened({ item: { row, change, event } }: { item: Item }) {
  if (row !== null && change !== null) {
    return (
      <Link to="/executions" search={(before) => ({ ...keptScope(before), id: change })} className="text-accent underline">
        change
      </Link>
    );
  }
  if (event === null) return UNKNOWN;
  return (
    <Link to="/events" search={(before) => ({ ...keptScope(before), event })} className="text-accent underline">
      event
    </Link>
  );
}

/** What the signs mean, and what is not drawn. */
function Notes({ found, items }: { found: Found; items: Item[] }) {
  const signs = new Map(items.map(({ look }) => [`${look.sign} ${look.word}`, look]));
  const left = found.lanes.reduce((total, lane) => total + lane.spans_left_out, 0);
  return (
    <details>
      <summary className="w-fit text-accent">What the signs mean</summary>
      <p className="mt-1 flex flex-wrap gap-x-4 gap-y-1">
        {[...signs].sort().map(([key, { sign, tone, word }]) => (
          <span key={key} className="whitespace-nowrap">
            <span aria-hidden="true" className={TEXT[tone]}>{sign}</span> {word}
          </span>
        ))}
        <span>a small number: so many events stand for one sign</span>
      </p>
      {left > 0 && <p>{count(left)} more that lasted found no room in their lanes: see Executions.</p>}
      {found.more_changes && <p>More changes moved than are looked at here: see Executions.</p>}
    </details>
  );
}

const TEXT = { plain: "text-ink", accent: "text-accent", good: "text-good", warn: "text-warn", bad: "text-bad" };

function Drawing({ found }: { found: Found }) {
  const [box, width] = useWidth();
  const [chosen, setChosen] = useState<Item | null>(null);
  const lanes = useMemo(() => found.lanes.map((lane) => ({ ...lane, items: itemsOf(lane) })), [found]);
  const until = new Date(found.until).getTime();
  const first = Math.min(until - LEAST_MS, ...lanes.flatMap(({ items }) => items.map((item) => item.since)));
  const since = Math.max(new Date(found.since).getTime(), first);
  const x = (at: number) => ((Math.max(at, since) - since) / (until - since)) * width;
  return (
    <div>
      <ul className="space-y-px">
        {lanes.map(({ lane, events, items }) => (
          <li key={lane} className="grid border-t border-line pt-1 first:border-0 md:grid-cols-[6.5rem_1fr]">
            <span className="text-xs text-muted md:pt-1">
              {lane}
              <span className="md:block"> {events === 0 ? "nothing" : `${count(events)} ${events === 1 ? "event" : "events"}`}</span>
            </span>
            {width > 0 && <Track lane={lane} items={items} width={width} x={x} chosen={chosen} onChosen={setChosen} />}
          </li>
        ))}
      </ul>
      <div className="grid md:grid-cols-[6.5rem_1fr]">
        <span />
        <div ref={box} className="min-w-0 border-t border-line">
          <svg width={width} height={AXIS_PX} className="block" aria-hidden="true">
            {ticks(since, until, width).filter(({ at }) => x(at) > LABEL_PX && x(at) < width - LABEL_PX).map(({ at, name }) => (
              <text key={at} x={x(at)} y={AXIS_PX - 4} textAnchor="middle" fontSize="11" fill="var(--muted)">
                {name}
              </text>
            ))}
          </svg>
        </div>
      </div>
      <p aria-live="polite" className="mt-1 min-h-10 text-sm md:min-h-5" data-chosen="">
        {chosen === null ? <span className="text-muted">Point at a sign, or go through a lane with ← and →; Enter opens it.</span> : toldOf(chosen)}
      </p>
    </div>
  );
}

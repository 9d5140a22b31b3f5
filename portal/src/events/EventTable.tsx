/** The event log as a table of which only the rows in sight exist, so that 20,000 scroll as 20. */
import { useNavigate, useSearch } from "@tanstack/react-router";
import { useVirtualizer } from "@tanstack/react-virtual";
import { useLayoutEffect, useMemo, useRef } from "react";
import type { ChangeRow, EventRow, Page } from "../api/types";
import { clock, count, dayAndClock } from "../format";
import { useSnapshot } from "../live/context";
import { RANGE_NAMES, useScope } from "../shell/scope";
import { Button, classes, Empty, Skeleton } from "../ui/basics";
import { ProblemNote } from "../ui/problem";
import { Drawer, FarDrawer } from "./Drawer";
import { MOST_ROWS, useEventLog } from "./log";
import { summaryOf } from "./words";

const ROW_PX = 36;
const TWO = "grid grid-cols-[5rem_1fr] gap-x-3";
const FIVE = `${TWO} md:grid-cols-[5rem_13rem_1fr_6rem_9rem]`;
const FIELD = "min-h-8 rounded-md border border-line bg-panel px-2 py-1 text-sm text-ink placeholder:text-muted";

/** Whether an event is about a deployment, for all that can be told from here. */
function useOfDeployment(deployment: string): (event: EventRow) => boolean {
  const path = `/changes?limit=200&deployment=${deployment}`;
  const changes = useSnapshot<Page<ChangeRow>>(["changes"], path, { enabled: deployment !== "" });
  return useMemo(() => {
    if (deployment === "") return () => true;
    const ids = new Set(changes.data?.items.map((row) => row.id));
    return (event) => ids.has(event.chain) || event.fact["deployment"] === deployment;
  }, [changes.data, deployment]);
}

export function EventTable() {
  const { range, deployment } = useScope();
  const { kind, change, find, event: open } = useSearch({ from: "/events" });
  const navigate = useNavigate({ from: "/events" });
  const { query, progress } = useEventLog(range);
  const ofDeployment = useOfDeployment(deployment);
  const rows = query.data?.rows;
  const kinds = useMemo(() => [...new Set(rows?.map((row) => row.kind))].sort(), [rows]);
  const shown = useMemo(() => {
    const wanted = find?.toLowerCase();
    return (rows ?? [])
      .filter((row) => !kind || row.kind === kind)
      .filter((row) => !change || row.chain === change)
      .filter(ofDeployment)
      .filter((row) => !wanted || textOf(row).includes(wanted))
      .reverse();
  }, [rows, kind, change, find, ofDeployment]);
  const put = (name: "kind" | "change" | "find" | "event", value: string | undefined) =>
    void navigate({
      replace: true,
      search: ({ [name]: _, ...rest }) => (value ? { ...rest, [name]: value } : rest),
    });
  const chosen = open ? rows?.find((row) => row.id === open) : undefined;
  const actions = {
    onClose: () => put("event", undefined),
    onChoose: (id: string) => put("event", id),
    onChange: (id: string) => put("change", id),
  };
  const opened =
    open && rows && (chosen ? <Drawer event={chosen} {...actions} /> : <FarDrawer id={open} {...actions} />);
  return (
    <>
      <div className="flex flex-wrap items-center gap-2">
        <input
          data-search=""
          type="search"
          aria-label="search events"
          placeholder="Search ( / )"
          value={find ?? ""}
          onChange={(event) => put("find", event.target.value)}
          className={FIELD}
        />
        <select aria-label="kind" className={FIELD} value={kind ?? ""} onChange={(event) => put("kind", event.target.value)}>
          <option value="">all kinds</option>
          {kinds.map((name) => (
            <option key={name}>{name}</option>
          ))}
        </select>
        {change && (
          <Button onClick={() => put("change", undefined)}>change {change.slice(0, 8)} ✕</Button>
        )}
        <span role="status" className="text-sm text-muted">
          {rows === undefined ? `reading, ${count(progress)} so far` : `${count(shown.length)} of ${count(rows.length)} events`}
        </span>
        <Button look="quiet" why={shown.length === 0 ? "there is nothing to export" : null} onClick={() => exported(shown)}>
          Export JSONL
        </Button>
      </div>
      {query.isError && <ProblemNote error={query.error} />}
      {query.data?.cut && (
        <p className="text-warn">
          The range holds more: the first {count(MOST_ROWS)} are here. Choose a shorter range.
        </p>
      )}
      {rows === undefined && !query.isError && <Skeleton lines={12} height="h-7" />}
      {rows !== undefined && shown.length === 0 && (
        <Empty
          why={rows.length === 0 ? `Nothing was said in the ${RANGE_NAMES[range]}.` : "No event fits."}
          next={rows.length === 0 ? "Choose a longer range above." : "Take a filter away."}
        />
      )}
      {shown.length > 0 && (
        <div className={classes("flex min-h-0 flex-1 flex-col gap-3 lg:flex-row", query.isError && "opacity-60")}>
          <Rows rows={shown} chosen={open} onChoose={(id) => put("event", id)} />
          {opened}
        </div>
      )}
      {shown.length === 0 && opened}
    </>
  );
}

function textOf(row: EventRow): string {
  return `${row.kind} ${summaryOf(row.kind, row.fact)} ${row.source} ${row.id} ${row.chain}`.toLowerCase();
}

function exported(rows: EventRow[]): void {
  const lines = [...rows].reverse().map((row) => JSON.stringify(row) + "\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/x-ndjson" }));
  link.download = "optiinfra-events.jsonl";
  link.click();
  URL.revokeObjectURL(link.href);
}

interface RowsProps {
  rows: EventRow[];
  chosen: string | undefined;
  onChoose: (id: string) => void;
}

function Rows({ rows, chosen, onChoose }: RowsProps) {
  const box = useRef<HTMLDivElement>(null);
  const virtual = useVirtualizer({
    count: rows.length,
    getScrollElement: () => box.current,
    estimateSize: () => ROW_PX,
    overscan: 12,
    getItemKey: (index) => rows[index]?.id ?? index,
  });
  useKeptPlace(box, rows);
  return (
    <div className="flex min-h-72 min-w-0 flex-1 flex-col rounded-lg border border-line bg-panel">
      <div
        aria-hidden="true"
        className={classes(chosen ? TWO : FIVE, "border-b border-line px-3 py-1.5 text-xs text-muted")}
      >
        <span>time</span>
        {!chosen && <span className="hidden md:block">kind</span>}
        <span>what</span>
        {!chosen && <span className="hidden md:block">change</span>}
        {!chosen && <span className="hidden md:block">source</span>}
      </div>
      <div ref={box} tabIndex={0} role="list" aria-label="events, the latest first" className="min-h-0 flex-1 overflow-y-auto">
        <div role="presentation" className="relative" style={{ height: virtual.getTotalSize() }}>
          {virtual.getVirtualItems().map(({ index, start, key }) => {
            const row = rows[index];
            return (
              row && (
                <div
                  key={key}
                  role="listitem"
                  aria-setsize={rows.length}
                  aria-posinset={index + 1}
                  className="absolute inset-x-0 top-0 border-b border-line"
                  style={{ height: ROW_PX, transform: `translateY(${start}px)` }}
                >
                  <Row row={row} chosen={row.id === chosen} narrow={chosen !== undefined} onChoose={onChoose} />
                </div>
              )
            );
          })}
        </div>
      </div>
    </div>
  );
}

interface RowProps {
  row: EventRow;
  chosen: boolean;
  /** Beside the drawer there is room for time and words only. */
  narrow: boolean;
  onChoose: (id: string) => void;
}

function Row({ row, chosen, narrow, onChoose }: RowProps) {
  return (
    <button
      type="button"
      data-row={chosen ? "chosen" : ""}
      aria-pressed={chosen}
      onClick={() => onChoose(row.id)}
      className={classes(
        narrow ? TWO : FIVE,
        "h-full w-full items-center px-3 text-left -outline-offset-2 hover:bg-raised",
        chosen && "bg-accent-soft",
      )}
    >
      <time dateTime={row.at} title={dayAndClock(row.at)} className="font-mono text-xs">
        {clock(row.at)}
      </time>
      {!narrow && <span className="hidden truncate font-mono text-xs md:block">{row.kind}</span>}
      <span className="truncate">{summaryOf(row.kind, row.fact)}</span>
      {!narrow && (
        <span className="hidden truncate font-mono text-xs text-muted md:block">
          {row.correlation?.slice(0, 8) ?? "–"}
        </span>
      )}
      {!narrow && <span className="hidden truncate text-xs text-muted md:block">{row.source}</span>}
    </button>
  );
}

/** New rows come in on top; who has scrolled down keeps looking at what they looked at. */
function useKeptPlace(box: React.RefObject<HTMLDivElement | null>, rows: EventRow[]): void {
  const top = useRef<string | undefined>(undefined);
  useLayoutEffect(() => {
    const added = top.current === undefined ? 0 : rows.findIndex((row) => row.id === top.current);
    top.current = rows[0]?.id;
    if (box.current && added > 0 && box.current.scrollTop > 0) box.current.scrollTop += added * ROW_PX;
  }, [box, rows]);
}

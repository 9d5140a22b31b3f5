/** One lane: moments above, what lasted below. The arrows go through it, a click or Enter opens. */
import { useNavigate } from "@tanstack/react-router";
import { useId, type KeyboardEvent } from "react";
import { keptScope } from "../shell/keys";
import type { Tone } from "../ui/basics";
import { toldOf, type Item } from "./lanes";

const MARK_PX = 15;
const MARK_ROWS = 3;
const SPAN_PX = 16;
const LEAST_PX = 4;
const LETTER_PX = 6.2;

const INK: Record<Tone, string> = { plain: "var(--ink)", accent: "var(--accent)", good: "var(--good)", warn: "var(--warn)", bad: "var(--bad)" };
const GROUND: Record<Tone, string> = {
  plain: "var(--raised)", accent: "var(--accent-soft)", good: "var(--good-soft)", warn: "var(--warn-soft)", bad: "var(--bad-soft)",
};

interface TrackProps {
  lane: string;
  items: Item[];
  width: number;
  x: (at: number) => number;
  chosen: Item | null;
  onChosen: (item: Item | null) => void;
}

export function Track({ lane, items, width, x, chosen, onChosen }: TrackProps) {
  const name = useId();
  const open = useOpen();
  const at = items.findIndex(({ id }) => id === chosen?.id);
  const levels = levelled(items.filter(({ row }) => row === null), x);
  const top = MARK_PX * (1 + Math.max(0, ...levels.values()));
  const rows = Math.max(0, ...items.map(({ row }) => (row === null ? 0 : row + 1)));
  const height = top + rows * SPAN_PX + 2;
  if (items.length === 0) return <div className="h-4" />;
  const pressed = (event: KeyboardEvent) => {
    const next = moved(event.key, at, items.length);
    if (next !== null) onChosen(items[next] ?? null);
    else if (event.key === "Enter" && chosen !== null && at >= 0) open(chosen);
    else return;
    event.preventDefault();
  };
  return (
    <div
      role="listbox"
      tabIndex={0}
      aria-label={`${lane}: what it did`}
      aria-activedescendant={at >= 0 ? `${name}-${at}` : undefined}
      onKeyDown={pressed}
      onFocus={() => at < 0 && onChosen(items.at(-1) ?? null)}
      data-lane={lane}
      className="min-w-0 overflow-hidden"
    >
      <svg width={width} height={height} className="block">
        {items.map((item, number) => (
          <g
            key={item.id}
            id={`${name}-${number}`}
            role="option"
            aria-selected={number === at}
            aria-label={toldOf(item)}
            onMouseEnter={() => onChosen(item)}
            onClick={() => open(item)}
            className="cursor-pointer"
          >
            {item.row === null ? (
              <MarkSign item={item} x={x(item.since)} y={MARK_PX * (1 + (levels.get(item) ?? 0))} chosen={number === at} />
            ) : (
              <SpanBar item={item} left={x(item.since)} right={item.until === null ? width : x(item.until)} top={top + item.row * SPAN_PX} chosen={number === at} />
            )}
          </g>
        ))}
      </svg>
    </div>
  );
}

/** Opens the change of what lasted, the event of a moment. */
function useOpen(): (item: Item) => void {
  const navigate = useNavigate();
  return ({ row, change, event }) => {
    if (row !== null && change !== null) {
      void navigate({ to: "/executions", search: (before) => ({ ...keptScope(before), id: change }) });
    } else if (event !== null) {
      void navigate({ to: "/events", search: (before) => ({ ...keptScope(before), event }) });
    }
  };
}

function moved(key: string, at: number, length: number): number | null {
  if (key === "ArrowRight") return Math.min(length - 1, at + 1);
  if (key === "ArrowLeft") return Math.max(0, at < 0 ? length - 1 : at - 1);
  if (key === "Home") return 0;
  return key === "End" ? length - 1 : null;
}

/** Marks that would lie on one another lie above one another, as far as there are rows. */
function levelled(items: Item[], x: (at: number) => number): Map<Item, number> {
  const ends: number[] = Array.from({ length: MARK_ROWS }, () => -Infinity);
  const levels = new Map<Item, number>();
  for (const item of items) {
    const left = x(item.since) - MARK_PX / 2;
    const free = ends.findIndex((end) => end <= left);
    const level = free >= 0 ? free : MARK_ROWS - 1;
    ends[level] = left + MARK_PX + (item.count > 1 ? LETTER_PX * String(item.count).length : 0);
    levels.set(item, level);
  }
  return levels;
}

function MarkSign({ item: { look, count }, x, y, chosen }: { item: Item; x: number; y: number; chosen: boolean }) {
  return (
    <>
      <rect x={x - MARK_PX / 2} y={y - MARK_PX + 1} width={MARK_PX} height={MARK_PX} rx="3" fill={chosen ? "var(--raised)" : "transparent"} stroke={chosen ? "var(--accent)" : "none"} />
      <text x={x} y={y - 2} textAnchor="middle" fontSize="12" fontWeight="700" fill={INK[look.tone]} aria-hidden="true">
        {look.sign}
      </text>
      {count > 1 && (
        <text x={x + MARK_PX / 2} y={y - 5} fontSize="9" fill="var(--muted)" aria-hidden="true">
          {count}
        </text>
      )}
    </>
  );
}

interface SpanBarProps {
  item: Item;
  left: number;
  right: number;
  top: number;
  chosen: boolean;
}

function SpanBar({ item: { look, name, until }, left, right, top, chosen }: SpanBarProps) {
  const width = Math.max(LEAST_PX, right - left);
  const letters = Math.floor((width - 18) / LETTER_PX);
  const told = letters >= name.length ? name : letters > 3 ? `${name.slice(0, letters - 1)}…` : "";
  return (
    <>
      <rect
        x={left}
        y={top + 1}
        width={width}
        height={SPAN_PX - 3}
        rx="3"
        fill={GROUND[look.tone]}
        stroke={INK[look.tone]}
        strokeWidth={chosen ? 2 : 1}
        strokeDasharray={until === null ? "4 2" : "none"}
      />
      {width >= MARK_PX && (
        <text x={left + 4} y={top + SPAN_PX - 5} fontSize="10" fill={INK[look.tone]} aria-hidden="true">
          {look.sign} {told}
        </text>
      )}
    </>
  );
}

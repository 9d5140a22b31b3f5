/** Requests by time and latency: the fuller a cell, the stronger its colour. */
import { useId } from "react";
import type { TtftMap } from "../api/types";
import { clock, count, dayAndClock, seconds } from "../format";
import type { Marker } from "./charts";
import { ticks, useWidth } from "./plot";

const HEIGHT = 288;
const LEFT = 60;
const BOTTOM = 22;
const TOP = 10;
const LABEL_PX = 14;
const FAINTEST = 0.14;
const UNREAD_PX = 5;
const DAY_S = 86_400;

export type HeatColumn = TtftMap["columns"][number];
export type HeatRow = TtftMap["rows"][number];

export function boundOf({ up_to_s: high, over_s: low }: HeatRow): string {
  return high === null ? `over ${seconds(low)}` : seconds(high);
}

export function peakOf({ columns }: TtftMap): number {
  return Math.max(0, ...columns.flatMap(({ counts }) => counts ?? []));
}

/** How a column's time is told: with its day where there are several. */
export function timeIn({ columns, column_s: wide }: TtftMap): (at: string) => string {
  return columns.length * wide > DAY_S ? dayAndClock : clock;
}

/** How strong a cell's colour is, 0 to 1: few requests can be seen beside many. */
export function strength(requests: number, peak: number): number {
  return FAINTEST + (1 - FAINTEST) * (Math.log1p(requests) / Math.log1p(peak));
}

export function HeatMap({ found, markers }: { found: TtftMap; markers: Marker[] }) {
  const [box, width] = useWidth();
  return (
    <div ref={box} className="h-full">
      {width > LEFT && <Drawing found={found} markers={markers} width={width} />}
    </div>
  );
}

interface DrawingProps {
  found: TtftMap;
  markers: Marker[];
  width: number;
}

function Drawing({ found, markers, width }: DrawingProps) {
  const hatch = useId();
  const peak = peakOf(found);
  const time = timeIn(found);
  const { columns, rows } = found;
  const since = new Date(found.since).getTime();
  const until = since + columns.length * found.column_s * 1_000;
  const wide = (width - LEFT) / columns.length;
  const high = (HEIGHT - TOP - BOTTOM) / Math.max(1, rows.length);
  const x = (at: number) => LEFT + ((at - since) / (until - since)) * (width - LEFT);
  const y = (edge: number) => HEIGHT - BOTTOM - edge * high;
  const every = Math.ceil(LABEL_PX / high);
  const line = edgeOf(rows, found.objective_s);
  return (
    <svg width={width} height={HEIGHT} className="block">
      <defs>
        <pattern id={hatch} width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
          <rect width="6" height="6" fill="var(--panel)" />
          <line x1="0" y1="0" x2="0" y2="6" stroke="var(--muted)" strokeWidth="1.5" strokeOpacity="0.6" />
        </pattern>
      </defs>
      {columns.map((column, place) => (
        <Column key={column.at} column={column} rows={rows} peak={peak} time={time(column.at)} hatch={hatch} left={LEFT + place * wide} width={wide} high={high} />
      ))}
      {rows.map((row, place) =>
        (rows.length - 1 - place) % every === 0 ? (
          <text key={place} x={LEFT - 6} y={y(place + 1) + 4} textAnchor="end" fontSize="11" fill="var(--muted)">
            {row.up_to_s === null ? "more" : seconds(row.up_to_s)}
          </text>
        ) : null,
      )}
      {ticks(since, until, width - LEFT).map(({ at, name }) => (
        <text key={at} x={x(at)} y={HEIGHT - 6} textAnchor="middle" fontSize="11" fill="var(--muted)">
          {name}
        </text>
      ))}
      {markers.filter(({ at }) => at >= since && at <= until).map(({ at, name }) => (
        <g key={`${at} ${name}`}>
          <title>{`${clock(at)} ${name}`}</title>
          <line x1={x(at)} x2={x(at)} y1={TOP} y2={HEIGHT - BOTTOM} stroke="var(--ink)" strokeDasharray="2 3" />
          <text x={x(at)} y={TOP} textAnchor="middle" fontSize="11" fill="var(--ink)">▼</text>
        </g>
      ))}
      {line !== null && (
        <g>
          <line x1={LEFT} x2={width} y1={y(line)} y2={y(line)} stroke="var(--bad)" strokeWidth="2" strokeDasharray="6 3" />
          <text x={LEFT + 6} y={y(line) + (line > rows.length - 1 ? 14 : -5)} fontSize="12" fontWeight="600" fill="var(--bad)" stroke="var(--panel)" strokeWidth="4" paintOrder="stroke">
            {`objective ${seconds(found.objective_s)}`}
          </text>
        </g>
      )}
    </svg>
  );
}

interface ColumnProps {
  column: HeatColumn;
  rows: HeatRow[];
  peak: number;
  time: string;
  hatch: string;
  left: number;
  width: number;
  high: number;
}

/** Hatched as a whole where nothing is known, at its foot where not all is. */
function Column({ column, rows, peak, time, hatch, left, width, high }: ColumnProps) {
  const tall = HEIGHT - TOP - BOTTOM;
  if (column.counts === null) {
    return (
      <rect x={left} y={TOP} width={width} height={tall} fill={`url(#${hatch})`}>
        <title>{`${time}: not known (${column.reason})`}</title>
      </rect>
    );
  }
  return (
    <g>
      <rect x={left} y={TOP} width={width} height={tall} fill="var(--raised)">
        <title>{`${time}: no request`}</title>
      </rect>
      {column.counts.map((requests, place) => {
        const row = rows[place];
        if (requests === 0 || row === undefined) return null;
        return (
          <rect
            key={place}
            x={left}
            y={TOP + tall - (place + 1) * high}
            width={Math.max(1, width - 0.5)}
            height={Math.max(1, high - 0.5)}
            fill="var(--accent)"
            fillOpacity={strength(requests, peak)}
          >
            <title>{`${time}, over ${seconds(row.over_s)} up to ${boundOf(row)}: ${count(requests)} requests`}</title>
          </rect>
        );
      })}
      {column.unread > 0 && (
        <rect x={left} y={TOP + tall - UNREAD_PX} width={width} height={UNREAD_PX} fill={`url(#${hatch})`}>
          <title>{`${time}: ${column.unread} scrapes failed, so this is not all`}</title>
        </rect>
      )}
    </g>
  );
}

/** How many rows lie below a latency, the one that holds it in part; null where it has no place. */
function edgeOf(rows: HeatRow[], limit: number): number | null {
  const place = rows.findIndex(({ over_s: low, up_to_s: high }) => low < limit && (high === null || limit <= high));
  const row = rows[place];
  if (row === undefined) return null;
  if (row.up_to_s === null) return place;
  return place + (limit - row.over_s) / (row.up_to_s - row.over_s);
}

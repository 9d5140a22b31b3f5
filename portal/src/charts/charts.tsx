/** The drawings, loaded together where one is shown first. Colours follow the theme. */
import {
  Area,
  Bar,
  BarChart,
  CartesianGrid,
  ComposedChart,
  Legend,
  Line,
  ReferenceLine,
  ResponsiveContainer,
  Scatter,
  ScatterChart,
  Tooltip,
  XAxis,
  YAxis,
} from "recharts";
import { clock } from "../format";

const TEXT = { fill: "var(--muted)", fontSize: 12 };
const COLOURS = ["var(--accent)", "var(--warn)", "var(--good)", "var(--bad)", "var(--muted)", "var(--ink)"];
const DASHES = ["0", "6 3", "2 3", "8 3 2 3", "1 4", "10 4"];
const BOX = { background: "var(--panel)", borderColor: "var(--line)", color: "var(--ink)" };

function inInk(name: string) {
  return <span className="text-ink">{name}</span>;
}

export interface Marker {
  at: number;
  name: string;
}

interface LinesProps {
  data: Record<string, number | null>[];
  names: string[];
  /** How a number reads, with its unit. */
  told: (value: number) => string;
  limit?: { value: number; name: string } | undefined;
  markers?: Marker[];
}

/** Time below, from nothing up at the side. */
function Axes({ told }: { told: (value: number) => string }) {
  return (
    <>
      <CartesianGrid stroke="var(--line)" vertical={false} />
      <XAxis
        dataKey="at"
        type="number"
        scale="time"
        domain={["dataMin", "dataMax"]}
        tick={TEXT}
        tickFormatter={(at: number) => clock(at).slice(0, 5)}
        stroke="var(--line)"
        minTickGap={32}
      />
      <YAxis tick={TEXT} tickFormatter={told} stroke="var(--line)" width={64} domain={[0, "auto"]} />
    </>
  );
}

/** Lines over time; each has a colour and a dash of its own, and breaks where nothing is known. */
export function Lines({ data, names, told, limit, markers = [] }: LinesProps) {
  return (
    <ResponsiveContainer width="100%" height="100%">
      <ComposedChart data={data} margin={{ top: 12, right: 8, bottom: 0, left: 0 }} accessibilityLayer={false}>
        <Axes told={told} />
        <Tooltip
          isAnimationActive={false}
          contentStyle={BOX}
          labelFormatter={(at) => clock(Number(at))}
          formatter={(value) => told(Number(value))}
        />
        {names.length > 1 && <Legend formatter={inInk} />}
        {limit && (
          <ReferenceLine
            y={limit.value}
            stroke="var(--bad)"
            strokeDasharray="4 3"
            ifOverflow="extendDomain"
            label={{ value: limit.name, fill: "var(--bad)", fontSize: 12, position: "insideTopLeft" }}
          />
        )}
        {markers.map(({ at, name }) => (
          <ReferenceLine
            key={`${at} ${name}`}
            x={at}
            stroke="var(--muted)"
            label={{ value: name, fill: "var(--muted)", fontSize: 11, position: "top" }}
          />
        ))}
        {names.map((name, number) => (
          <Line
            key={name}
            dataKey={name}
            dot={lone(data, name)}
            stroke={COLOURS[number % COLOURS.length] ?? "var(--ink)"}
            strokeDasharray={DASHES[number % DASHES.length] ?? "0"}
            strokeWidth={2}
            isAnimationActive={false}
            connectNulls={false}
          />
        ))}
      </ComposedChart>
    </ResponsiveContainer>
  );
}

interface PointProps {
  index: number;
  cx?: number | undefined;
  cy?: number | undefined;
  stroke?: string | undefined;
}

/** A dot where neither neighbour has a value: no line leads there. */
function lone(data: LinesProps["data"], name: string) {
  const known = (at: number) => typeof data[at]?.[name] === "number";
  const isAlone = (at: number) => known(at) && !known(at - 1) && !known(at + 1);
  if (!data.some((_, at) => isAlone(at))) return false;
  return ({ index, cx, cy, stroke }: PointProps) => {
    if (!isAlone(index) || cx === undefined || cy === undefined) return <g />;
    return <circle cx={cx} cy={cy} r={3} fill={stroke} data-lone />;
  };
}

interface BandProps {
  /** `band` is what was forecast, from expected to head-room, `came` what came; null is not known. */
  data: { at: number; band: [number, number] | null; came: number | null; over: number | null }[];
  told: (value: number) => string;
}

/** A band over time, and as a line what came; where that left the band it is marked. */
export function Band({ data, told }: BandProps) {
  return (
    <ResponsiveContainer width="100%" height="100%">
      <ComposedChart data={data} margin={{ top: 12, right: 8, bottom: 0, left: 0 }} accessibilityLayer={false}>
        <Axes told={told} />
        <Tooltip
          isAnimationActive={false}
          contentStyle={BOX}
          labelFormatter={(at) => `peak up to ${clock(Number(at))}`}
          formatter={(value) => (Array.isArray(value) ? value.map((one) => told(Number(one))).join(" to ") : told(Number(value)))}
        />
        <Legend formatter={inInk} />
        <Area
          dataKey="band"
          name="forecast, expected to head-room"
          fill="var(--accent)"
          fillOpacity={0.22}
          stroke="var(--accent)"
          dot={false}
          isAnimationActive={false}
          connectNulls={false}
        />
        <Line dataKey="came" name="highest load that came" stroke="var(--ink)" strokeWidth={2} dot={false} isAnimationActive={false} connectNulls={false} />
        <Line dataKey="over" name="✕ above the head-room" stroke="none" legendType="none" dot={Beyond} isAnimationActive={false} />
      </ComposedChart>
    </ResponsiveContainer>
  );
}

function Beyond({ cx, cy, value }: { cx?: number | undefined; cy?: number | undefined; value?: unknown }) {
  if (cx === undefined || cy === undefined || typeof value !== "number") return <g />;
  return (
    <text x={cx} y={cy + 4} textAnchor="middle" fontSize="13" fontWeight="700" fill="var(--bad)">
      ✕
    </text>
  );
}

interface StackProps {
  data: Record<string, number | string>[];
  names: string[];
  told: (value: number) => string;
}

/** Bars that add up, one for each row. */
export function Stack({ data, names, told }: StackProps) {
  return (
    <ResponsiveContainer width="100%" height="100%">
      <BarChart data={data} layout="vertical" margin={{ top: 4, right: 8, bottom: 0, left: 0 }} accessibilityLayer={false}>
        <XAxis type="number" tick={TEXT} tickFormatter={told} stroke="var(--line)" />
        <YAxis type="category" dataKey="name" tick={TEXT} stroke="var(--line)" width={88} />
        <Tooltip isAnimationActive={false} contentStyle={BOX} formatter={(value) => told(Number(value))} />
        <Legend formatter={inInk} />
        {names.map((name, number) => (
          <Bar
            key={name}
            dataKey={name}
            stackId="whole"
            fill={COLOURS[number % COLOURS.length] ?? "var(--ink)"}
            stroke="var(--panel)"
            isAnimationActive={false}
          />
        ))}
      </BarChart>
    </ResponsiveContainer>
  );
}

interface DotsProps {
  data: { predicted: number; realised: number; name: string }[];
  told: (value: number) => string;
}

/** Predicted against realised; on the line a prediction came true. */
export function Dots({ data, told }: DotsProps) {
  const ends = data.flatMap(({ predicted, realised }) => [predicted, realised]);
  const low = Math.min(0, ...ends);
  const high = Math.max(0, ...ends) * 1.1;
  return (
    <ResponsiveContainer width="100%" height="100%">
      <ScatterChart margin={{ top: 8, right: 16, bottom: 4, left: 0 }} accessibilityLayer={false}>
        <CartesianGrid stroke="var(--line)" />
        <XAxis type="number" dataKey="predicted" name="predicted" domain={[low, high]} tick={TEXT} tickFormatter={told} stroke="var(--line)" />
        <YAxis type="number" dataKey="realised" name="realised" domain={[low, high]} tick={TEXT} tickFormatter={told} stroke="var(--line)" width={72} />
        <ReferenceLine segment={[{ x: low, y: low }, { x: high, y: high }]} stroke="var(--muted)" strokeDasharray="4 3" />
        <Tooltip isAnimationActive={false} contentStyle={BOX} formatter={(value) => told(Number(value))} />
        <Scatter data={data} fill="var(--accent)" isAnimationActive={false} />
      </ScatterChart>
    </ResponsiveContainer>
  );
}

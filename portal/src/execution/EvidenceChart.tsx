/** The chart of `Evidence`, loaded only where one is shown. */
import {
  Area,
  CartesianGrid,
  ComposedChart,
  Legend,
  Line,
  ResponsiveContainer,
  Tooltip,
  XAxis,
  YAxis,
} from "recharts";
import type { Point } from "./Evidence";

const TEXT = { fill: "var(--muted)", fontSize: 12 };

export default function EvidenceChart({ points }: { points: Point[] }) {
  return (
    <div role="img" aria-label="quality of candidate and baseline, look by look" className="h-56">
      <ResponsiveContainer width="100%" height="100%">
        <ComposedChart data={points} margin={{ top: 8, right: 8, bottom: 0, left: 0 }} accessibilityLayer={false}>
          <CartesianGrid stroke="var(--line)" vertical={false} />
          <XAxis dataKey="name" tick={TEXT} stroke="var(--line)" minTickGap={24} />
          <YAxis tick={TEXT} stroke="var(--line)" width={44} domain={["auto", "auto"]} />
          <Tooltip
            isAnimationActive={false}
            contentStyle={{ background: "var(--panel)", borderColor: "var(--line)", color: "var(--ink)" }}
          />
          <Legend formatter={(name: string) => <span className="text-ink">{name}</span>} />
          <Area
            name="difference (interval)"
            dataKey="difference"
            stroke="none"
            fill="var(--warn)"
            fillOpacity={0.25}
            isAnimationActive={false}
            connectNulls={false}
          />
          <Line
            name="candidate, score"
            dataKey="candidate"
            stroke="var(--accent)"
            strokeWidth={2}
            isAnimationActive={false}
          />
          <Line
            name="baseline, score"
            dataKey="baseline"
            stroke="var(--muted)"
            strokeWidth={2}
            strokeDasharray="5 4"
            isAnimationActive={false}
          />
        </ComposedChart>
      </ResponsiveContainer>
    </div>
  );
}

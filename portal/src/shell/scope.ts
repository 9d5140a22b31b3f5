/** What all pages look at: since when, and at which deployment. It stands in the address. */
import { useSearch } from "@tanstack/react-router";

export const RANGES = ["15m", "1h", "6h", "24h", "7d"] as const;
export type Range = (typeof RANGES)[number];

export const RANGE_NAMES: Record<Range, string> = {
  "15m": "last 15 minutes",
  "1h": "last hour",
  "6h": "last 6 hours",
  "24h": "last 24 hours",
  "7d": "last 7 days",
};

export const RANGE_MS: Record<Range, number> = {
  "15m": 900_000,
  "1h": 3_600_000,
  "6h": 21_600_000,
  "24h": 86_400_000,
  "7d": 604_800_000,
};

const MINUTE_MS = 60_000;

export function useScope(): { range: Range; deployment: string } {
  return useSearch({ strict: false, select: ({ range, deployment }) => ({
    range: range ?? "24h",
    deployment: deployment ?? "",
  }) });
}

const LONGEST_WINDOW_S = 86_400;
const SHORTEST_WINDOW_S = 300;

/** A range as the window of a figure, s; figures look back a day at most. */
export function windowOf(range: Range): number {
  return Math.max(SHORTEST_WINDOW_S, Math.min(RANGE_MS[range] / 1_000, LONGEST_WINDOW_S));
}

/** The beginning of a range, on a whole minute so that the same question is asked for a while. */
export function sinceOf(range: Range): string {
  const begin = Date.now() - RANGE_MS[range];
  return new Date(Math.floor(begin / MINUTE_MS) * MINUTE_MS).toISOString();
}

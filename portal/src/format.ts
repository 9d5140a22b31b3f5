/** Numbers with their units, and times; what is unknown is "–", never 0. */
import type { Measured } from "./api/figures";
import type { Interval, Reading, Unit } from "./api/types";

export const UNKNOWN = "–";
export const HOURS_PER_MONTH = 730;

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });

export function count(value: number | null | undefined): string {
  return value === null || value === undefined ? UNKNOWN : whole.format(value);
}

/** Two digits that mean something, whatever the size. */
export function digits(value: number): string {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 100) return whole.format(value);
  if (size >= 10) return tenth.format(value);
  return value.toFixed(size >= 1 ? 2 : size >= 0.1 ? 3 : 4);
}

export function usdPerHour(value: number | null | undefined): string {
  if (value === null || value === undefined) return UNKNOWN;
  return `$${value >= 100 || value === 0 ? whole.format(value) : value.toFixed(value >= 1 ? 2 : 3)}/h`;
}

export function usdPerMonth(value: number | null | undefined): string {
  return value === null || value === undefined ? UNKNOWN : `$${whole.format(value)}/month`;
}

/** "$92 to $131 per month", with how sure that is. */
export function savingRange(range: Interval | null | undefined): string {
  if (!range) return UNKNOWN;
  return `$${whole.format(range.low)} to $${whole.format(range.high)} per month`;
}

export function percent(share: number | null | undefined, places = 0): string {
  return share === null || share === undefined ? UNKNOWN : `${(share * 100).toFixed(places)} %`;
}

export function seconds(value: number | null | undefined): string {
  if (value === null || value === undefined) return UNKNOWN;
  if (value < 1) return `${digits(value * 1_000)} ms`;
  if (value < 120) return `${tenth.format(value)} s`;
  if (value < 7_200) return `${tenth.format(value / 60)} min`;
  if (value < 172_800) return `${tenth.format(value / 3_600)} h`;
  return `${tenth.format(value / 86_400)} days`;
}

const OF_UNIT: Record<Unit | "usd" | "usd_per_month" | "usd_per_million_tokens", (value: number) => string> = {
  s: seconds,
  fraction: (value) => `${digits(value * 100)} %`,
  count: (value) => (Number.isInteger(value) ? count(value) : digits(value)),
  per_s: (value) => `${digits(value)}/s`,
  bytes: (value) => `${digits(value / 2 ** 30)} GiB`,
  celsius: (value) => `${digits(value)} °C`,
  watts: (value) => `${digits(value)} W`,
  usd_per_hour: usdPerHour,
  usd_per_month: usdPerMonth,
  usd: (value) => `$${digits(value)}`,
  usd_per_million_tokens: (value) => `$${digits(value)} per 1M tokens`,
  score: (value) => value.toFixed(3),
  tokens: (value) => `${whole.format(value)} tokens`,
};

export function measured(value: number | null | undefined, unit: string): string {
  if (value === null || value === undefined) return UNKNOWN;
  const told = unit in OF_UNIT ? OF_UNIT[unit as Unit] : undefined;
  return told ? told(value) : `${digits(value)} ${words(unit)}`;
}

/** A figure, or "–" with why it is not known. */
export function figure({ value, unit, reason }: Measured): string {
  return value === null ? `${UNKNOWN} (${reason ?? "unknown"})` : measured(value, unit);
}

/** A reading with its error, or "–" with why it is unknown. */
export function reading(value: Reading | null | undefined, unit: Unit): string {
  if (!value) return UNKNOWN;
  if (value.state === "unknown") {
    return `${UNKNOWN} (${words(value.reason)}${value.detail ? `: ${value.detail}` : ""})`;
  }
  const error = value.error > 0 ? ` ± ${measured(value.error, unit)}` : "";
  return `${measured(value.value, unit)}${error}`;
}

/** `awaiting_approval` → "awaiting approval" */
export function words(name: string): string {
  return name.replaceAll("_", " ");
}

/** A metric without the unit at its end, which stands beside its value: "ttft p95". */
export function metricName(name: string): string {
  return words(name.replace(/_(s|fraction|per_s|bytes|usd_per_hour|usd_per_month)$/, ""));
}

/** The day alone, with its year: prices may be old. */
export function day(at: string): string {
  return at.slice(0, 10);
}

export function clock(at: string | number): string {
  return new Date(at).toLocaleTimeString("en-GB", { hour12: false });
}

export function dayAndClock(at: string | number): string {
  const day = new Date(at).toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  return `${day} ${clock(at)}`;
}

/** How long ago (or until) in one unit: "4 min ago", "in 2 h". */
export function relative(at: string | number, now: number): string {
  const past = (now - new Date(at).getTime()) / 1_000;
  const size = Math.abs(past);
  if (size < 5) return "now";
  const told =
    size < 90
      ? `${Math.round(size)} s`
      : size < 5_400
        ? `${Math.round(size / 60)} min`
        : size < 129_600
          ? `${Math.round(size / 3_600)} h`
          : `${Math.round(size / 86_400)} days`;
  return past > 0 ? `${told} ago` : `in ${told}`;
}

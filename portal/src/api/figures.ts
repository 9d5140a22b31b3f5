/** Figures as the API computes them: a value that is null says why. */
import type { GateAnswer, Interval, Reading, Unit } from "./types";

export interface Measured {
  value: number | null;
  unit: string;
  at: string | null;
  reason: string | null;
}

export interface Bounds {
  low: number | null;
  high: number | null;
  reason: string | null;
}

export interface Objective {
  objective: number;
  unit: string;
  observed: Measured;
  within: number | null;
  requests: number | null;
  met: boolean | null;
}

export interface Objectives {
  deployment: string;
  ttft: Objective;
  tpot: Objective;
  errors: Objective;
  goodput: Bounds;
  met: boolean | null;
}

export interface OverviewFigures {
  at: string;
  window_s: number;
  spend: { usd_per_hour: Measured; usd_per_month: Measured; deployments: { deployment: string }[] };
  realised: { usd_per_month: Measured; changes: number; unknown: number; deployments: string[] };
  slo: { deployments: Objectives[] };
  simulated: string[];
}

export interface Component {
  component: string;
  usd_per_hour: number;
}

export interface DeploymentCosts {
  deployment: string;
  model: string | null;
  usd_per_hour: Measured;
  idle_usd_per_hour: Measured;
  usd_per_month: Measured;
  components: Component[];
  unpriced_replicas: number;
  tokens: { prompt: number | null; generated: number | null };
  usd_per_million_tokens: Measured;
  usd_per_million_good_tokens: Bounds;
  waterfall: {
    baseline_usd_per_hour: Measured;
    realised_usd_per_hour: Measured;
    other_usd_per_hour: Measured;
    current_usd_per_hour: Measured;
    changes: number;
    unknown: number;
  };
}

export interface Costs {
  at: string;
  window_s: number;
  price_sources: string[];
  total: { usd_per_hour: Measured; usd_per_month: Measured; idle_usd_per_hour: Measured };
  deployments: DeploymentCosts[];
  sources: Record<string, string>;
}

export interface OutcomeRow {
  id: string;
  title: string | null;
  at: string;
  outcome: {
    deployment: string;
    kind: string;
    terminal: string;
    predicted_usd_per_month: Interval | null;
    realised_usd_per_month: Reading;
  };
}

export interface Metric {
  metric: string;
  unit: Unit;
  meaning: string;
  aggs: string[];
  by: "replica" | "gpu" | null;
  longest_days: number;
}

export interface Series {
  deployment: string;
  metric: string;
  unit: Unit;
  agg: string;
  since: string;
  until: string;
  step_s: number;
  how: string;
  series: { of: string | null; values: (number | null)[]; unknown: number[] }[];
}

export interface Quantiles {
  p50: Measured;
  p95: Measured;
  p99: Measured;
}

export interface Performance {
  deployment: string;
  model: string;
  at: string;
  window_s: number;
  latest_s: number;
  objectives: Objectives;
  latencies: {
    metric: string;
    objective_s: number | null;
    exact: boolean;
    latest: Quantiles;
    window: Quantiles;
  }[];
  levels: { metric: string; unit: Unit; fold: string; latest: Measured; window: Measured }[];
}

export interface ReplicaFigures {
  replica: string;
  state: "busy" | "idle" | "unknown";
  instance_type: string | null;
  market: string | null;
  last_seen_at: string;
  usd_per_hour: Measured;
  kv_usage: Measured;
  kv_capacity_tokens: Measured;
  running: Measured;
  waiting: Measured;
  requests_per_s: Measured;
}

export interface GpuFigures {
  host: string;
  gpu: string;
  name: string;
  busy: Measured;
  memory_used: Measured;
  temperature: Measured;
  power: Measured;
}

export interface Resources {
  deployment: string;
  at: string;
  window_s: number;
  replicas: ReplicaFigures[];
  idle: { replicas: string[]; usd_per_hour: Measured; usd_in_window: Measured };
  gpus: GpuFigures[];
  offered_rps: Measured;
}

export interface Quality {
  deployment: string;
  at: string;
  window_s: number;
  floor: { max_relative_drop: number; alpha: number; beta: number };
  baseline: { mean: number; stdev: number; units: number; scorer: string; at: string } | null;
  answers: {
    source: "live" | "golden";
    count: number;
    scored: number;
    mean: Measured;
    failed: number;
    refused: number;
  }[];
}

export interface GateRow {
  position: number;
  id: string;
  at: string;
  change: string;
  answer: GateAnswer;
}

export interface AnswerRow {
  id: string;
  at: string;
  replica: string;
  score: Measured;
  source: "live" | "golden";
  stratum: string;
  ok: boolean;
  fault: string | null;
  refusal: boolean;
}


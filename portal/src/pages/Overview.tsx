/** Is anything wrong, and what should I decide now? */
import { Link } from "@tanstack/react-router";
import type { ReactNode } from "react";
import type { OverviewFigures } from "../api/figures";
import type { Agent, ChangeRow, Page, RecommendationRow, Switch } from "../api/types";
import { useEventLog } from "../events/log";
import { summaryOf } from "../events/words";
import { clock, count, relative, savingRange, seconds, UNKNOWN, usdPerHour, words } from "../format";
import { useSnapshot } from "../live/context";
import { Lanes } from "../overview/Lanes";
import { keptScope } from "../shell/keys";
import { useScope } from "../shell/scope";
import { Ago, Badge, Code, Empty, Panel, useNow } from "../ui/basics";
import { FigureTile, Tile } from "../ui/figures";
import { Simulated } from "../ui/simulated";
import { ProblemNote, Shown } from "../ui/problem";
import { RiskBadge, StateBadge } from "../ui/states";
import { Table } from "../ui/table";
import { expectedValue } from "../recommendation/order";
import { standing } from "./Executions";

const AGENTS_EVERY_MS = 5_000;
const FIGURES_EVERY_MS = 15_000;
const ACTIVITY_ROWS = 12;

function useOverview() {
  const { deployment } = useScope();
  const of = deployment && `&deployment=${deployment}`;
  return {
    agents: useSnapshot<Page<Agent>>(["agents"], "/agents", { every: AGENTS_EVERY_MS }),
    asked: useSnapshot<Page<RecommendationRow>>(
      ["recommendations"],
      `/recommendations?state=awaiting_approval&snoozed=false&limit=200${of}`,
      { every: FIGURES_EVERY_MS },
    ),
    running: useSnapshot<Page<ChangeRow>>(["changes"], `/changes?state=executing${of}`),
    undone: useSnapshot<Page<ChangeRow>>(["changes"], `/changes?state=rolling_back${of}`),
    failed: useSnapshot<Page<ChangeRow>>(["changes"], `/changes?state=failed&limit=20${of}`),
    stop: useSnapshot<Switch>(["switch"], "/switch"),
    figures: useSnapshot<OverviewFigures>(["changes", "figures"], "/overview", { every: FIGURES_EVERY_MS }),
  };
}

export function Overview() {
  const { agents, asked, running, undone, failed, stop, figures } = useOverview();
  const moving = [...(undone.data?.items ?? []), ...(running.data?.items ?? [])];
  const error = [running, undone, failed, stop].find((query) => query.isError)?.error;
  return (
    <div className="space-y-4">
      {error !== undefined && <ProblemNote error={error} />}
      <Tiles asked={asked.data} moving={running.data && undone.data ? moving.length : null} agents={agents.data} stop={stop.data} simulated={figures.data?.simulated} />
      <Alarms agents={agents.data} failed={failed.data} stop={stop.data} figures={figures.data} />
      {figures.data && <Figures found={figures.data} />}
      <Lanes />
      <div className="grid grid-cols-1 items-start gap-4 xl:grid-cols-2">
        <Panel title="Needs you">
          <Shown query={asked} lines={3} height="h-14">
            {({ items }) => <NeedsYou rows={items} simulated={figures.data?.simulated} />}
          </Shown>
        </Panel>
        <Panel title="Running changes">
          <Shown query={running} lines={3} height="h-14">
            {() => <Moving rows={moving} />}
          </Shown>
        </Panel>
        <Panel title="Agents">
          <Shown query={agents} lines={4}>
            {({ items }) => <Agents rows={items} />}
          </Shown>
        </Panel>
        <Activity />
      </div>
    </div>
  );
}

interface TilesProps {
  asked: Page<RecommendationRow> | undefined;
  moving: number | null;
  agents: Page<Agent> | undefined;
  stop: Switch | undefined;
  simulated: string[] | undefined;
}

function Tiles({ asked, moving, agents, stop, simulated }: TilesProps) {
  const now = useNow(5_000);
  const oldest = asked?.items.map((row) => row.updated_at).sort()[0];
  const alive = agents?.items.filter((agent) => agent.status === "alive").length;
  const estimated = (asked?.items ?? []).filter((row) => row.recommendation.saving_usd_per_month);
  const known = asked?.items.flatMap(({ recommendation }) => recommendation.saving_usd_per_month ?? []);
  const total = known && known.length > 0
    ? { low: sum(known.map((one) => one.low)), mid: 0, high: sum(known.map((one) => one.high)), confidence: 0 }
    : null;
  return (
    <div className="grid grid-cols-2 gap-3 lg:grid-cols-4">
      <Tile name="Waiting for you" value={count(asked?.items.length)}>
        {oldest ? `the oldest since ${relative(oldest, now)}` : asked ? "nothing to decide" : UNKNOWN}
      </Tile>
      <Tile
        name="Savings waiting"
        value={savingRange(total)}
        mark={<Simulated of={estimated.map((row) => row.recommendation.deployment)} among={simulated} />}
      >
        {asked && known && known.length < asked.items.length ? `${asked.items.length - known.length} without an estimate` : "of what waits for you"}
      </Tile>
      <Tile name="Running changes" value={count(moving)}>
        {stop?.stopped ? "no new stage begins: stopped" : "stages being carried out or undone"}
      </Tile>
      <Tile name="Agents alive" value={agents ? `${count(alive)} of ${count(agents.items.length)}` : UNKNOWN}>
        instances that answer
      </Tile>
    </div>
  );
}

function sum(values: number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

interface AlarmsProps {
  agents: Page<Agent> | undefined;
  failed: Page<ChangeRow> | undefined;
  stop: Switch | undefined;
  figures: OverviewFigures | undefined;
}

/** What is wrong, or that nothing is, as far as it is known. */
function Alarms({ agents, failed, stop, figures }: AlarmsProps) {
  if (!agents || !failed || !stop) return null;
  const lost = agents.items.filter((agent) => agent.status !== "alive");
  const wrong: [string, ReactNode][] = [
    ...lost.map((agent): [string, ReactNode] => [
      `agent ${agent.instance}`,
      `${agent.agent} has been silent for ${seconds(agent.silent_s)}`,
    ]),
    ...failed.items.map((row): [string, ReactNode] => [
      row.id,
      <Link key={row.id} to="/executions" search={(before) => ({ ...keptScope(before), id: row.id })} className="underline">
        {row.title}: {row.end_reason ?? "failed"}
      </Link>,
    ]),
  ];
  for (const { deployment, met } of figures?.slo.deployments ?? []) {
    if (met === false) wrong.push([`slo ${deployment}`, `${deployment} misses its objectives`]);
  }
  if (stop.stopped) {
    wrong.unshift(["switch", `All changes are stopped by ${stop.by ?? UNKNOWN}: ${stop.reason ?? UNKNOWN}`]);
  }
  if (wrong.length === 0) {
    return (
      <p className="rounded-lg border border-line bg-panel px-4 py-2">
        <Badge tone="good">nothing is wrong</Badge> No agent is silent, no change has failed, nothing is stopped{figures?.slo.deployments.length ? ", no objective is known to be missed" : ""}.
      </p>
    );
  }
  return (
    <ul className="space-y-1 rounded-lg border border-bad bg-bad-soft px-4 py-2">
      {wrong.map(([key, what]) => (
        <li key={key}>
          <span aria-hidden="true" className="text-bad">✕ </span>
          {what}
        </li>
      ))}
    </ul>
  );
}

/** Spend, what our changes have saved of it, and whether requests are served as promised. */
function Figures({ found: { spend, realised, slo, simulated } }: { found: OverviewFigures }) {
  const paid = <Simulated of={spend.deployments.map((one) => one.deployment)} among={simulated} />;
  const known = slo.deployments.filter(({ met }) => met !== null);
  const met = known.filter((one) => one.met).length;
  const dark = slo.deployments.length - known.length;
  return (
    <div className="grid grid-cols-2 gap-3 lg:grid-cols-4">
      <FigureTile name="Spend" of={spend.usd_per_hour} about="all that is paid for now" mark={paid} />
      <FigureTile name="At this rate" of={spend.usd_per_month} about="at 730 h a month" mark={paid} />
      <FigureTile
        name="Realised savings"
        of={realised.usd_per_month}
        mark={<Simulated of={realised.deployments} among={simulated} />}
        about={`by ${realised.changes} ${realised.changes === 1 ? "change" : "changes"}${realised.unknown > 0 ? `, ${realised.unknown} not known` : ""}`}
      />
      <Tile name="Objectives met" value={known.length > 0 ? `${met} of ${known.length}` : UNKNOWN} mark={<Simulated of={known.map((one) => one.deployment)} among={simulated} />}>
        {dark > 0 ? `${dark} deployments not known` : "deployments"}
      </Tile>
    </div>
  );
}

function NeedsYou({ rows, simulated }: { rows: RecommendationRow[]; simulated: string[] | undefined }) {
  if (rows.length === 0) return <Empty why="Nothing waits for a decision." next="You will see it here within a second when something does." />;
  const first = [...rows].sort((a, b) => expectedValue(b) - expectedValue(a));
  return (
    <ul className="space-y-2">
      {first.slice(0, 5).map(({ id, recommendation, updated_at }) => (
        <li key={id}>
          <Link
            to="/recommendations"
            search={(before) => ({ ...keptScope(before), id })}
            data-row=""
            className="block rounded-md border border-line p-2 hover:bg-raised"
          >
            <span className="font-medium">{recommendation.title}</span>
            <span className="mt-1 flex flex-wrap items-center gap-2 text-xs text-muted">
              <RiskBadge risk={recommendation.risk} />
              <span>now {usdPerHour(recommendation.spend_usd_per_hour)}</span>
              <span>saves {savingRange(recommendation.saving_usd_per_month)}</span>
              <Simulated of={[recommendation.deployment]} among={simulated} />
              <Ago at={updated_at} />
            </span>
          </Link>
        </li>
      ))}
    </ul>
  );
}

function Moving({ rows }: { rows: ChangeRow[] }) {
  if (rows.length === 0) return <Empty why="Nothing is being carried out." next="What you approve shows here while it runs." />;
  return (
    <ul className="space-y-2">
      {rows.map((row) => (
        <li key={row.id}>
          <Link
            to="/executions"
            search={(before) => ({ ...keptScope(before), id: row.id })}
            data-row=""
            className="block rounded-md border border-line p-2 hover:bg-raised"
          >
            <span className="font-medium">{row.title}</span>
            <span className="mt-1 flex flex-wrap items-center gap-2 text-xs text-muted">
              <StateBadge state={row.state} />
              <span>{standing(row)}</span>
              <Ago at={row.updated_at} />
            </span>
          </Link>
        </li>
      ))}
    </ul>
  );
}

function Agents({ rows }: { rows: Agent[] }) {
  if (rows.length === 0) {
    return <Empty why="No agent has registered yet." next={<>They do within seconds of <Code>optiinfra up</Code>.</>} />;
  }
  return (
    <Table
      label="agents"
      head={["agent", "state", "last heard", "works on", "handled", "failed", "version"]}
      rows={rows.map((agent) => [
        agent.agent,
        <Badge key="status" tone={agent.status === "alive" ? "good" : "bad"}>
          {words(agent.status)}
        </Badge>,
        agent.silent_s < 1 ? "now" : `${seconds(Math.round(agent.silent_s))} ago`,
        agent.busy_with?.replace(/\b([0-9a-f]{8})[0-9a-f]{24}\b/, "$1") ?? "nothing",
        count(agent.handled),
        count(agent.failed),
        agent.version,
      ])}
    />
  );
}

function Activity() {
  const { query } = useEventLog("1h");
  return (
    <Panel
      title="Activity of the last hour"
      aside={
        <Link to="/events" search={keptScope} className="text-accent underline">
          All events
        </Link>
      }
    >
      <Shown query={query} lines={8}>
        {({ rows }) => {
          const told = rows.filter((row) => !row.kind.startsWith("timer.")).slice(-ACTIVITY_ROWS).reverse();
          if (told.length === 0) return <Empty why="Nothing happened in the last hour." />;
          return (
            <ol className="space-y-1">
              {told.map((row) => (
                <li key={row.id} className="grid grid-cols-[auto_1fr] gap-x-3">
                  <time dateTime={row.at} className="font-mono text-xs leading-6 text-muted">
                    {clock(row.at)}
                  </time>
                  <Link
                    to="/events"
                    search={(before) => ({ ...keptScope(before), event: row.id })}
                    className="truncate hover:underline"
                  >
                    {summaryOf(row.kind, row.fact)}
                  </Link>
                </li>
              ))}
            </ol>
          );
        }}
      </Shown>
    </Panel>
  );
}

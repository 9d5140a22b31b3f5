/** What is spent, on what, what it buys, and what our changes have done about it. */
import { call } from "../api/client";
import type { Bounds, Costs, DeploymentCosts, OutcomeRow } from "../api/figures";
import type { Page } from "../api/types";
import { ChartPanel } from "../charts/ChartPanel";
import { Dots, Stack } from "../charts/lazy";
import { figure, measured, UNKNOWN, usdPerHour, usdPerMonth, words } from "../format";
import { useSnapshot } from "../live/context";
import { useScope, windowOf } from "../shell/scope";
import { Button, Empty, Panel } from "../ui/basics";
import { FigureTile } from "../ui/figures";
import { Shown } from "../ui/problem";
import { Table } from "../ui/table";

const EVERY_MS = 15_000;

export function Cost() {
  const { range, deployment } = useScope();
  const of = deployment && `&deployment=${deployment}`;
  const path = `/costs?window_s=${windowOf(range)}${of}`;
  const costs = useSnapshot<Costs>(["changes", "costs"], path, { every: EVERY_MS });
  const outcomes = useSnapshot<Page<OutcomeRow>>(["outcomes"], `/outcomes?limit=200${of}`);
  return (
    <div className="space-y-4">
      <Shown query={costs} lines={4} height="h-24">
        {(found) => <Spending costs={found} path={path} />}
      </Shown>
      <Shown query={outcomes} lines={1} height="h-48">
        {({ items }) => <Predictions rows={items} />}
      </Shown>
    </div>
  );
}

function Spending({ costs, path }: { costs: Costs; path: string }) {
  const { total, deployments, price_sources: sources } = costs;
  if (deployments.length === 0) {
    return <Empty why="No deployment is declared or paid for." next="Name one in the fleet file." />;
  }
  return (
    <div className="space-y-4">
      <div className="grid grid-cols-1 gap-3 sm:grid-cols-3">
        <FigureTile name="Spend" of={total.usd_per_hour} about="all that is paid for now" />
        <FigureTile name="At this rate" of={total.usd_per_month} about="at 730 h a month" />
        <FigureTile name="Of it idle" of={total.idle_usd_per_hour} about="replicas that serve nothing" />
      </div>
      <div className="grid items-start gap-4 2xl:grid-cols-2">
        <Components deployments={deployments} />
        <Waterfalls deployments={deployments} />
      </div>
      <Panel title="By deployment" aside={<Button onClick={() => void exported(path)}>Export CSV</Button>}>
        <Table
          label="cost by deployment"
          head={["deployment", "model", "spend", "a month", "idle", "per 1M tokens", "per 1M good tokens", "without a price"]}
          rows={deployments.map((one) => [
            one.deployment,
            one.model ?? UNKNOWN,
            figure(one.usd_per_hour),
            figure(one.usd_per_month),
            figure(one.idle_usd_per_hour),
            figure(one.usd_per_million_tokens),
            bounds(one.usd_per_million_good_tokens),
            one.unpriced_replicas > 0 ? `${one.unpriced_replicas} replicas` : "none",
          ])}
        />
        <p className="mt-2 text-xs text-muted">
          Prices: {sources.join(", ") || UNKNOWN}. A token is good where its request kept its objectives.
        </p>
      </Panel>
    </div>
  );
}

function bounds({ low, high, reason }: Bounds): string {
  if (low === null || high === null) return `${UNKNOWN} (${reason ?? "unknown"})`;
  return `${measured(low, "usd")} to ${measured(high, "usd")}`;
}

function Components({ deployments }: { deployments: DeploymentCosts[] }) {
  const names = [...new Set(deployments.flatMap((one) => one.components.map((part) => part.component)))].sort();
  const data = deployments.map((one) => ({
    name: one.deployment,
    ...Object.fromEntries(one.components.map((part) => [words(part.component), part.usd_per_hour])),
  }));
  if (names.length === 0) {
    return (
      <Panel title="Spend by component">
        <Empty why="Not known: no replica has a price." />
      </Panel>
    );
  }
  return (
    <ChartPanel
      title="Spend by component, $/h"
      head={["deployment", ...names.map(words)]}
      rows={deployments.map((one) => [
        one.deployment,
        ...names.map((name) => usdPerHour(one.components.find((part) => part.component === name)?.usd_per_hour)),
      ])}
    >
      <Stack data={data} names={names.map(words)} told={usdPerHour} />
    </ChartPanel>
  );
}

function Waterfalls({ deployments }: { deployments: DeploymentCosts[] }) {
  return (
    <Panel title="From baseline to now, $/h">
      <Table
        label="baseline, less what was realised, and other movement, is what is spent now"
        head={["deployment", "before our changes", "− realised", "+ other", "= now", "changes"]}
        rows={deployments.map(({ deployment, waterfall: fall }) => [
          deployment,
          figure(fall.baseline_usd_per_hour),
          figure(fall.realised_usd_per_hour),
          figure(fall.other_usd_per_hour),
          figure(fall.current_usd_per_hour),
          `${fall.changes}${fall.unknown > 0 ? `, ${fall.unknown} unknown` : ""}`,
        ])}
      />
    </Panel>
  );
}

function Predictions({ rows }: { rows: OutcomeRow[] }) {
  const data = rows.flatMap(({ title, id, outcome }) => {
    const { predicted_usd_per_month: predicted, realised_usd_per_month: got } = outcome;
    if (!predicted || got.state !== "known") return [];
    return [{ predicted: predicted.mid, realised: got.value, name: title ?? id.slice(0, 8) }];
  });
  if (data.length === 0) {
    return (
      <Panel title="Predicted against realised savings">
        <Empty why="No change has ended with both a prediction and a measured saving." />
      </Panel>
    );
  }
  return (
    <ChartPanel
      title="Predicted against realised savings"
      about="On the dashed line a prediction came true; below it less was saved."
      head={["change", "predicted", "realised"]}
      rows={data.map(({ name, predicted, realised }) => [name, usdPerMonth(predicted), usdPerMonth(realised)])}
    >
      <Dots data={data} told={(value) => `$${Math.round(value)}`} />
    </ChartPanel>
  );
}

async function exported(path: string): Promise<void> {
  const answer = await fetch(`/api/v1${path}`, { headers: { Accept: "text/csv" } });
  if (!answer.ok) {
    await call(path);
    return;
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = "optiinfra-costs.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

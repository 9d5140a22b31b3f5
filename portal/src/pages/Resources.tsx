/** What the machines do: replicas, what lies idle, and the GPUs that can be read. */
import type { GpuFigures, ReplicaFigures, Resources as Figures } from "../api/figures";
import { ForecastChart } from "../charts/ForecastChart";
import { SeriesChart } from "../charts/SeriesChart";
import { figure, measured, UNKNOWN, words } from "../format";
import { useSnapshot } from "../live/context";
import { useScope, windowOf } from "../shell/scope";
import { Ago, Badge, Empty, Panel, type Tone } from "../ui/basics";
import { FigureTile, OfDeployment, Tile } from "../ui/figures";
import { Shown } from "../ui/problem";
import { Table } from "../ui/table";

const EVERY_MS = 15_000;
const OF_STATE: Record<ReplicaFigures["state"], Tone> = { busy: "good", idle: "warn", unknown: "plain" };

export function Resources() {
  return <OfDeployment>{(deployment) => <OfOne key={deployment} deployment={deployment} />}</OfDeployment>;
}

function OfOne({ deployment }: { deployment: string }) {
  const { range } = useScope();
  const path = `/deployments/${deployment}/resources?window_s=${windowOf(range)}`;
  const query = useSnapshot<Figures>(["resources", deployment], path, { every: EVERY_MS });
  return (
    <div className="space-y-4">
      <Shown query={query} lines={4} height="h-24">
        {(found) => <Parts found={found} />}
      </Shown>
      <ForecastChart deployment={deployment} range={range} />
      <div className="grid items-start gap-4 lg:grid-cols-2">
        <SeriesChart
          title="KV cache in use, by replica"
          deployment={deployment}
          parts={[{ metric: "kv_usage_fraction", name: "in use" }]}
          range={range}
          by="replica"
        />
        <SeriesChart
          title="Requests at work, by replica"
          deployment={deployment}
          parts={[{ metric: "requests_running", name: "requests" }]}
          range={range}
          by="replica"
        />
      </div>
    </div>
  );
}

function Parts({ found }: { found: Figures }) {
  const { replicas, idle, gpus, offered_rps: offered } = found;
  return (
    <div className="space-y-4">
      <div className="grid grid-cols-2 gap-3 lg:grid-cols-4">
        <Tile name="Replicas" value={String(replicas.length)}>
          {replicas.filter((one) => one.state === "busy").length} busy
        </Tile>
        <FigureTile name="Offered load" of={offered} about="what clients ask for" />
        <FigureTile name="Idle spend" of={idle.usd_per_hour} about={idle.replicas.join(", ") || "no replica is idle"} />
        <FigureTile name="Wasted in the range" of={idle.usd_in_window} about="at this rate" />
      </div>
      <Panel title="Replicas">
        {replicas.length === 0 ? (
          <Empty why="No replica has been seen in this range." next="Choose a longer range, or look whether engines run." />
        ) : (
          <Table
            label="replicas"
            head={["replica", "state", "instance", "spend", "KV cache in use", "KV cache", "running", "waiting", "requests", "last seen"]}
            rows={replicas.map((one) => [
              one.replica,
              <Badge key="state" tone={OF_STATE[one.state]}>
                {one.state}
              </Badge>,
              `${one.instance_type ?? UNKNOWN}, ${words(one.market ?? UNKNOWN)}`,
              figure(one.usd_per_hour),
              figure(one.kv_usage),
              figure(one.kv_capacity_tokens),
              figure(one.running),
              figure(one.waiting),
              figure(one.requests_per_s),
              <Ago key="seen" at={one.last_seen_at} />,
            ])}
          />
        )}
      </Panel>
      <Panel title="GPUs of the machines that agents run on">
        {gpus.length === 0 ? <Empty why="No GPU can be read here: there is none, or its driver does not answer." /> : <Gpus gpus={gpus} />}
      </Panel>
    </div>
  );
}

function Gpus({ gpus }: { gpus: GpuFigures[] }) {
  return (
    <ul className="grid gap-3 sm:grid-cols-2 xl:grid-cols-3">
      {gpus.map((gpu) => (
        <li key={`${gpu.host} ${gpu.gpu}`} className="rounded-md border border-line p-3">
          <p className="font-medium">
            {gpu.name} <span className="text-muted">{gpu.host}/{gpu.gpu}</span>
          </p>
          <Meter name="busy" of={gpu.busy} />
          <Meter name="memory" of={gpu.memory_used} />
          <p className="text-sm">
            {figure(gpu.temperature)} · {figure(gpu.power)}
          </p>
        </li>
      ))}
    </ul>
  );
}

function Meter({ name, of }: { name: string; of: GpuFigures["busy"] }) {
  return (
    <p className="flex items-center gap-2 text-sm">
      <span className="w-16 text-muted">{name}</span>
      {of.value !== null && (
        <meter aria-label={name} min={0} max={1} value={of.value} className="h-2 flex-1" />
      )}
      <span>{of.value === null ? figure(of) : measured(of.value, of.unit)}</span>
    </p>
  );
}

/** One recommendation whole, in the order in which a person decides. */
import { Link, useNavigate } from "@tanstack/react-router";
import type { ReactNode } from "react";
import type { CardView } from "../api/types";
import { day, dayAndClock, percent, relative, savingRange, seconds, UNKNOWN, usdPerHour, usdPerMonth, words } from "../format";
import { useSnapshot } from "../live/context";
import { keptScope } from "../shell/keys";
import { Ago, Badge, Button, Facts, Raw, useNow } from "../ui/basics";
import { Shown } from "../ui/problem";
import { Simulated } from "../ui/simulated";
import { RiskBadge, StateBadge } from "../ui/states";
import { Change } from "./Change";
import { Decision } from "./Decision";
import { EvidenceTable } from "./Evidence";
import { List } from "./List";
import type { Tab } from "./order";
import { SimilarCases, TrackRecord } from "./PastOutcomes";
import { Votes } from "./Votes";

export function Card({ id, tab }: { id: string; tab: Tab }) {
  const query = useSnapshot<CardView>(["recommendation", id], `/recommendations/${id}/card`);
  const navigate = useNavigate({ from: "/recommendations" });
  const close = () => void navigate({ search: ({ id: _, ...rest }) => ({ ...rest, tab }) });
  return (
    <article aria-label="recommendation" className="rounded-lg border border-line bg-panel">
      <div className="flex justify-end px-4 pt-2">
        <Button look="quiet" data-action="close" onClick={close}>
          Close
        </Button>
      </div>
      <div className="px-4 pb-4">
        <Shown query={query} lines={10} height="h-16">
          {(card) => <Parts card={card} />}
        </Shown>
      </div>
    </article>
  );
}

function Parts({ card }: { card: CardView }) {
  const { risk, evidence, rollback, header, simulated } = card;
  const mark = <Simulated of={[header.deployment]} among={simulated} />;
  return (
    <div className="space-y-5">
      <Head card={card} />
      <Part title="Money">
        <Money card={card} />
      </Part>
      <Part title="Risk">
        <RiskBadge risk={risk.level} />
        <List items={risk.reasons} none="no reasons are given" />
      </Part>
      <Part title="Blast radius">
        <BlastRadius card={card} />
      </Part>
      <Part title="Votes">
        <Votes votes={card.votes} mark={mark} />
      </Part>
      <Part title="Evidence">
        <EvidenceTable evidence={evidence.rows} curve={evidence.curve} mark={mark} />
        <SimilarCases cases={evidence.similar} simulated={simulated} />
      </Part>
      <Part title="The change">
        <Change card={card} />
        <Raw value={card.change.spec} label="the change as JSON" />
      </Part>
      <Part title="Rollout">
        <Rollout card={card} />
      </Part>
      <Part title="Rollback">
        <p>Takes about {seconds(rollback.seconds)}.</p>
        <List items={rollback.cannot_be_undone} none="Everything can be undone." />
      </Part>
      <Decision card={card} />
    </div>
  );
}

function Part({ title, children }: { title: string; children: ReactNode }) {
  return (
    <section aria-label={title} className="space-y-2">
      <h3 className="text-xs font-semibold tracking-wide text-muted uppercase">{title}</h3>
      {children}
    </section>
  );
}

function Head({ card }: { card: CardView }) {
  const { header, state, decision, unknown } = card;
  const now = useNow();
  const until = header.urgent_until;
  return (
    <header className="space-y-2">
      <h2 className="text-lg font-semibold">{header.title}</h2>
      <div className="flex flex-wrap items-center gap-x-3 gap-y-1 text-muted">
        <StateBadge state={state} />
        {until && <Badge tone="warn">urgent until {dayAndClock(until)}</Badge>}
        <span>
          on <strong className="text-ink">{header.deployment}</strong>
        </span>
        <span>
          by {header.proposer}, <Ago at={header.proposed_at} />
        </span>
        {decision.awaited && (
          <span>
            expires{" "}
            {header.expires_at ? relative(header.expires_at, now) : `${UNKNOWN} (${unknown["header.expires_at"] ?? "unknown"})`}
          </span>
        )}
        <span>
          version <span className="font-mono text-xs">{header.version_hash}</span>
        </span>
      </div>
      {decision.asked_because && <p>A person is asked: {decision.asked_because}</p>}
    </header>
  );
}

function Money({ card: { money, header, simulated, unknown } }: { card: CardView }) {
  const { saving_usd_per_month: saving, price_source: source } = money;
  const mark = <Simulated of={[header.deployment]} among={simulated} />;
  const why = (name: string) => `${UNKNOWN} (${unknown[`money.${name}`] ?? "unknown"})`;
  return (
    <>
      <p className="text-base">
        {saving ? (
          <>
            saves <strong>{savingRange(saving)}</strong>
            {mark} ({percent(saving.confidence)} sure; most likely {usdPerMonth(saving.mid)})
          </>
        ) : (
          `saves ${why("saving_usd_per_month")}`
        )}
      </p>
      <p className="text-muted">
        now spends{" "}
        {money.spend_usd_per_hour === null ? (
          why("spend_usd_per_hour")
        ) : (
          <>
            {usdPerHour(money.spend_usd_per_hour)}, which is {usdPerMonth(money.spend_usd_per_month)}
            {mark} at 730 h
          </>
        )}{" "}
        · prices: {source ? `${source.name}, as of ${day(source.as_of)}` : why("price_source")}
      </p>
      <TrackRecord record={money.track_record} simulated={simulated} />
    </>
  );
}

function BlastRadius({ card: { blast_radius: blast, header, rollback, unknown } }: { card: CardView }) {
  const shares = blast.stages.map((stage) => percent(stage.share)).join(" → ");
  const exposures = blast.stages.map(
    ({ share, exposure_s }) => `${percent(share)} × ${seconds(rollback.seconds)} = ${seconds(exposure_s)}`,
  );
  return (
    <Facts
      rows={[
        ["deployment", header.deployment],
        ["model", blast.model ?? `${UNKNOWN} (${unknown["blast_radius.model"] ?? "unknown"})`],
        ["replicas", blast.replicas.length > 0 ? `${blast.replicas.length}: ${blast.replicas.join(", ")}` : "the change names none"],
        ["traffic", shares],
        ["exposure", `${exposures.join("; ")} of all traffic`],
      ]}
    />
  );
}

function Rollout({ card: { id, rollout } }: { card: CardView }) {
  return (
    <>
      <ol className="flex flex-wrap gap-2">
        {rollout.stages.map((stage, number) => (
          <li key={number} className="rounded-md border border-line px-3 py-2">
            <strong>{percent(stage.share)}</strong> of the traffic for {seconds(stage.soak_s)}, then
            a gate (at most {seconds(stage.hold_limit_s)})
          </li>
        ))}
      </ol>
      <p className="text-muted">
        Gates are answered by {rollout.gates.map(words).join(" and ")}, asked every{" "}
        {seconds(rollout.look_every_s)}; a stage takes at most {seconds(rollout.apply_timeout_s)} to
        apply.{" "}
        <Link
          to="/executions"
          search={(before) => ({ ...keptScope(before), id })}
          className="text-accent underline"
        >
          Its execution
        </Link>
      </p>
    </>
  );
}

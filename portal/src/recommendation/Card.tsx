/** One recommendation whole, in the order in which a person decides. */
import { Link, useNavigate } from "@tanstack/react-router";
import type { ReactNode } from "react";
import type { EventRow, Page, Recommendation, RecommendationDetail, Vote } from "../api/types";
import { day, dayAndClock, percent, relative, savingRange, seconds, UNKNOWN, usdPerHour, usdPerMonth, words } from "../format";
import { useSnapshot } from "../live/context";
import { keptScope } from "../shell/keys";
import { Ago, Badge, Button, Facts, Raw, useNow } from "../ui/basics";
import { Shown } from "../ui/problem";
import { RiskBadge, StateBadge, VerdictBadge } from "../ui/states";
import { Decision } from "./Decision";
import { EvidenceTable } from "./Evidence";
import { exposure, lastVotes, replicasOf, spendPerMonth, valuesOf } from "./facts";
import type { Tab } from "./order";
import { PastOutcomes } from "./PastOutcomes";

export function Card({ id, tab }: { id: string; tab: Tab }) {
  const query = useSnapshot<RecommendationDetail>(["recommendation", id], `/recommendations/${id}`);
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
          {(detail) => <Parts detail={detail} />}
        </Shown>
      </div>
    </article>
  );
}

function Parts({ detail }: { detail: RecommendationDetail }) {
  const { recommendation } = detail;
  return (
    <div className="space-y-5">
      <Head detail={detail} />
      <Part title="Money">
        <Money recommendation={recommendation} />
      </Part>
      <Part title="Risk">
        <RiskBadge risk={recommendation.risk} />
        <List items={recommendation.risk_reasons} none="no reasons are given" />
      </Part>
      <Part title="Blast radius">
        <BlastRadius recommendation={recommendation} />
      </Part>
      <Part title="Votes">
        <Votes votes={detail.votes} />
      </Part>
      <Part title="Evidence">
        <EvidenceTable evidence={recommendation.evidence} curve={recommendation.curve} />
      </Part>
      <Part title="The change">
        <Facts rows={[["kind", words(recommendation.spec.kind)], ...valuesOf(recommendation.spec)]} />
        <Raw value={recommendation.spec} label="the change as JSON" />
      </Part>
      <Part title="Rollout">
        <Rollout recommendation={recommendation} />
      </Part>
      <Part title="Rollback">
        <p>Takes about {seconds(recommendation.rollback_seconds)}.</p>
        <List items={recommendation.cannot_be_undone} none="Everything can be undone." />
      </Part>
      <Decision detail={detail} />
    </div>
  );
}

function Part({ title, children }: { title: string; children: ReactNode }) {
  return (
    <section className="space-y-2">
      <h3 className="text-xs font-semibold tracking-wide text-muted uppercase">{title}</h3>
      {children}
    </section>
  );
}

function Head({ detail }: { detail: RecommendationDetail }) {
  const { recommendation } = detail;
  const asked = useSnapshot<Page<EventRow>>(
    ["change", detail.id],
    `/events?change=${detail.id}&kind=approval.requested`,
  );
  const now = useNow();
  const last = asked.data?.items.at(-1)?.fact as { expires_at?: string; reason?: string } | undefined;
  const expires = detail.state === "awaiting_approval" ? last?.expires_at : undefined;
  const until = recommendation.urgent_until;
  return (
    <header className="space-y-2">
      <h2 className="text-lg font-semibold">{recommendation.title}</h2>
      <div className="flex flex-wrap items-center gap-x-3 gap-y-1 text-muted">
        <StateBadge state={detail.state} />
        {until && <Badge tone="warn">urgent until {dayAndClock(until)}</Badge>}
        <span>
          on <strong className="text-ink">{recommendation.deployment}</strong>
        </span>
        <span>
          by {recommendation.proposer}, <Ago at={detail.proposed_at} />
        </span>
        {expires && <span>expires {relative(expires, now)}</span>}
        <span>
          version <span className="font-mono text-xs">{detail.version_hash}</span>
        </span>
      </div>
      {detail.state === "awaiting_approval" && last?.reason && <p>A person is asked: {last.reason}</p>}
    </header>
  );
}

function Money({ recommendation }: { recommendation: Recommendation }) {
  const { saving_usd_per_month: saving, price_source: source } = recommendation;
  const spend = spendPerMonth(recommendation);
  return (
    <>
      <p className="text-base">
        {saving ? (
          <>
            saves <strong>{savingRange(saving)}</strong> ({percent(saving.confidence)} sure; most
            likely {usdPerMonth(saving.mid)})
          </>
        ) : (
          "no saving is estimated"
        )}
      </p>
      <p className="text-muted">
        now spends {usdPerHour(recommendation.spend_usd_per_hour)}, which is {usdPerMonth(spend)} at
        730 h · prices: {source ? `${source.name}, as of ${day(source.as_of)}` : UNKNOWN}
      </p>
      <PastOutcomes kind={recommendation.spec.kind} />
    </>
  );
}

function BlastRadius({ recommendation }: { recommendation: Recommendation }) {
  const replicas = replicasOf(recommendation.spec);
  const shares = recommendation.rollout.stages.map((stage) => percent(stage.share)).join(" → ");
  return (
    <Facts
      rows={[
        ["deployment", recommendation.deployment],
        ["replicas", replicas ? `${replicas.length}: ${replicas.join(", ")}` : UNKNOWN],
        ["traffic", shares],
        ["exposure", exposure(recommendation)],
      ]}
    />
  );
}

function Votes({ votes }: { votes: Vote[] }) {
  const shown = lastVotes(votes);
  if (shown.length === 0) return <p className="text-muted">No agent has voted yet.</p>;
  return (
    <ul className="space-y-2">
      {shown.map((vote) => (
        <li key={vote.agent} className="rounded-md border border-line p-3">
          <div className="flex flex-wrap items-center gap-2">
            <strong>{vote.agent}</strong>
            <VerdictBadge verdict={vote.verdict} />
            <span className="text-xs text-muted">
              round {vote.round}, <Ago at={vote.cast_at} />
            </span>
          </div>
          <List items={vote.reasons} none="no reason" />
          {vote.conditions.length > 0 && <List items={vote.conditions.map((one) => `if ${one}`)} none="" />}
          {vote.evidence.length > 0 && (
            <details className="mt-1">
              <summary className="w-fit text-accent">what it stands on</summary>
              <EvidenceTable evidence={vote.evidence} />
            </details>
          )}
        </li>
      ))}
    </ul>
  );
}

function Rollout({ recommendation }: { recommendation: Recommendation }) {
  const { stages, gates } = recommendation.rollout;
  return (
    <>
      <ol className="flex flex-wrap gap-2">
        {stages.map((stage, number) => (
          <li key={number} className="rounded-md border border-line px-3 py-2">
            <strong>{percent(stage.share)}</strong> of the traffic for {seconds(stage.soak_s)}, then
            a gate (at most {seconds(stage.hold_limit_s)})
          </li>
        ))}
      </ol>
      <p className="text-muted">
        Gates are answered by {gates.join(" and ")}.{" "}
        <Link
          to="/executions"
          search={(before) => ({ ...keptScope(before), id: recommendation.id })}
          className="text-accent underline"
        >
          Its execution
        </Link>
      </p>
    </>
  );
}

function List({ items, none }: { items: readonly string[]; none: string }) {
  if (items.length === 0) return none ? <p className="text-muted">{none}</p> : null;
  return (
    <ul className="list-disc pl-5">
      {items.map((item) => (
        <li key={item}>{item}</li>
      ))}
    </ul>
  );
}

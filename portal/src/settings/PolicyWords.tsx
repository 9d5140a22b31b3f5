/** A policy as sentences: who approves, when nothing begins, what may not fall below, the limits. */
import type { ReactNode } from "react";
import { Badge, type Tone } from "../ui/basics";
import {
  DECISIONS,
  floorTold,
  freezeTold,
  limitsTold,
  ruleTold,
  type ApprovalRule,
  type PolicyContent,
} from "./policy";

const TONES: Record<ApprovalRule["decision"], Tone> = { approve: "good", ask: "accent", ask_two: "warn", deny: "bad" };

export function PolicyWords({ policy }: { policy: PolicyContent }) {
  return (
    <div className="space-y-4">
      <Section title="Who approves">
        <ol className="space-y-2">
          {policy.approvals.map((rule, number) => (
            <Item key={rule.name} name={`${number + 1}. ${rule.name}`} told={ruleTold(rule)}>
              <Badge tone={TONES[rule.decision]}>{DECISIONS[rule.decision]}</Badge>
            </Item>
          ))}
          <li className="text-muted">
            {policy.approvals.length > 0
              ? "The first rule that matches decides; what none is about is asked of a person."
              : "No rule: a person is asked about everything."}
          </li>
        </ol>
      </Section>
      <Section title="When nothing begins">
        <Items empty="Never." parts={policy.freezes.map((one) => [one.name, freezeTold(one)])} />
      </Section>
      <Section title="What votes and gates must keep">
        <Items
          empty="Nothing beside the fleet’s objectives."
          parts={policy.floors.map((one) => [one.name, floorTold(one)])}
        />
      </Section>
      <Section title="How much, and for how long">
        <dl className="sm:grid sm:grid-cols-[auto_1fr] sm:gap-x-4 sm:gap-y-1">
          {limitsTold(policy).map(([name, value]) => (
            <div key={name} className="mb-2 sm:contents">
              <dt className="text-muted">{name}</dt>
              <dd className="break-words">{value}</dd>
            </div>
          ))}
        </dl>
      </Section>
    </div>
  );
}

function Section({ title, children }: { title: string; children: ReactNode }) {
  return (
    <section>
      <h3 className="mb-1 font-semibold">{title}</h3>
      {children}
    </section>
  );
}

function Items({ empty, parts }: { empty: string; parts: [string, string[]][] }) {
  if (parts.length === 0) return <p className="text-muted">{empty}</p>;
  return (
    <ul className="space-y-2">
      {parts.map(([name, told]) => (
        <Item key={name} name={name} told={told} />
      ))}
    </ul>
  );
}

function Item({ name, told, children }: { name: string; told: string[]; children?: ReactNode }) {
  return (
    <li>
      <span className="font-medium break-words">{name}</span> {children}
      <p className="text-muted">{told.join(" · ")}</p>
    </li>
  );
}

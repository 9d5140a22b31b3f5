/** What the agents say: as the API orders it, dissent first; of each the last round. */
import type { ReactNode } from "react";
import type { Vote } from "../api/types";
import { Ago } from "../ui/basics";
import { VerdictBadge } from "../ui/states";
import { EvidenceTable } from "./Evidence";
import { List } from "./List";

interface Props {
  votes: readonly Vote[];
  /** Beside what was measured. */
  mark: ReactNode;
}

export function Votes({ votes, mark }: Props) {
  const round = Math.max(0, ...votes.map((vote) => vote.round));
  const shown = votes.filter((vote) => vote.round === round);
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
              <EvidenceTable evidence={vote.evidence} mark={mark} />
            </details>
          )}
        </li>
      ))}
    </ul>
  );
}

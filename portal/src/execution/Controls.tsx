/** What an operator may ask of a change; what cannot be asked now says why. */
import { useState, type FormEvent } from "react";
import { call, newKey } from "../api/client";
import { includes } from "../api/session";
import type { Accepted, ChangeDetail } from "../api/types";
import { words } from "../format";
import { useLiveStream, useRefresh } from "../live/context";
import { useStaleReason } from "../shell/Connection";
import { useSession } from "../shell/session";
import { Button } from "../ui/basics";
import { Dialog } from "../ui/dialog";
import { ProblemNote } from "../ui/problem";
import { TERMINAL } from "../ui/states";

const HEARD_MS = 2_000;

interface Verb {
  path: string;
  name: string;
  about: string;
  danger?: boolean;
  refusal: (change: ChangeDetail) => string | null;
}

const undoing = ({ state }: ChangeDetail) =>
  state === "rolling_back" ? "it is being rolled back already" : null;

const VERBS: Verb[] = [
  {
    path: "pause",
    name: "Pause",
    about: "No further stage begins until it is resumed.",
    refusal: ({ paused_by }) => (paused_by ? `it is paused by ${paused_by} already` : null),
  },
  {
    path: "resume",
    name: "Resume",
    about: "Goes on after a pause.",
    refusal: ({ paused_by }) => (paused_by ? null : "it is not paused"),
  },
  {
    path: "promote",
    name: "Promote",
    about: "Takes the decision of the gate that is waited for: the stage passes.",
    refusal: ({ phase }) =>
      phase === "soaking" || phase === "gating" ? null : "no stage is waiting for its gate",
  },
  {
    path: "abort",
    name: "Abort",
    about: "Ends it: cancelled before its first step, rolled back after.",
    danger: true,
    refusal: undoing,
  },
  {
    path: "rollback",
    name: "Roll back",
    about: "Brings the target back to what it was before the change.",
    danger: true,
    refusal: undoing,
  },
];

export function Controls({ change }: { change: ChangeDetail }) {
  const who = useSession();
  const stale = useStaleReason();
  const [asked, setAsked] = useState<Verb | null>(null);
  if (TERMINAL.has(change.state)) {
    return <p className="text-muted">It is {words(change.state)}: nothing more can be asked of it.</p>;
  }
  const forAll = who && includes(who.role, "operator") ? stale : "it needs the role operator";
  const reasons = VERBS.map((verb) => [verb, forAll ?? verb.refusal(change)] as const);
  return (
    <div className="space-y-1">
      <div className="flex flex-wrap gap-2">
        {reasons.map(([verb, why]) => (
          <Button
            key={verb.path}
            look={verb.danger ? "danger" : "plain"}
            why={why}
            title={verb.about}
            onClick={() => setAsked(verb)}
          >
            {verb.name}
          </Button>
        ))}
      </div>
      <p className="text-xs text-muted">
        {forAll ??
          reasons
            .filter(([, why]) => why)
            .map(([verb, why]) => `${verb.name}: ${why}`)
            .join(" · ")}
      </p>
      {asked && <Ask change={change} verb={asked} onClose={() => setAsked(null)} />}
    </div>
  );
}

function Ask({ change, verb, onClose }: { change: ChangeDetail; verb: Verb; onClose: () => void }) {
  const stream = useLiveStream();
  const refresh = useRefresh();
  const [key] = useState(newKey);
  const [reason, setReason] = useState("");
  const [sending, setSending] = useState(false);
  const [unheard, setUnheard] = useState(false);
  const [refused, setRefused] = useState<unknown>(null);
  const submit = async (event: FormEvent) => {
    event.preventDefault();
    setSending(true);
    setRefused(null);
    try {
      const { data } = await call<Accepted>(`/changes/${change.id}/${verb.path}`, {
        method: "POST",
        body: { reason },
        headers: { "Idempotency-Key": key },
      });
      if (data.repeated || (await stream.heard(data.event_id, HEARD_MS))) onClose();
      else setUnheard(true);
    } catch (error) {
      setRefused(error);
    }
    setSending(false);
    void refresh(["change", change.id]);
  };
  return (
    <Dialog title={`${verb.name}: ${change.title}`} onClose={onClose}>
      <form onSubmit={(event) => void submit(event)} className="space-y-3">
        <p>{verb.about}</p>
        <label className="block">
          Reason (optional, kept in the audit trail)
          <textarea
            autoFocus
            rows={2}
            maxLength={2_000}
            value={reason}
            onChange={(event) => setReason(event.target.value)}
            className="mt-1 block w-full rounded-md border border-line bg-panel px-3 py-2"
          />
        </label>
        {refused !== null && <ProblemNote error={refused} />}
        {unheard && (
          <p role="alert" className="rounded-md border border-warn bg-warn-soft p-3">
            It is written down, but the live stream has not confirmed it within {HEARD_MS / 1_000} s.
            It is said as soon as the bus takes it.
          </p>
        )}
        <div className="flex gap-2">
          {!unheard && (
            <Button type="submit" look={verb.danger ? "danger" : "primary"} why={sending ? "sending" : null}>
              {verb.name}
            </Button>
          )}
          <Button onClick={onClose}>{unheard ? "Close" : "Cancel"}</Button>
        </div>
      </form>
    </Dialog>
  );
}

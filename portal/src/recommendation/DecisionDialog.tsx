/** Asks once more, sends the decision, and waits until its event has come back. */
import { useState, type FormEvent } from "react";
import { call, newKey } from "../api/client";
import type { Accepted, CardView } from "../api/types";
import { savingRange } from "../format";
import { useLiveStream, useRefresh } from "../live/context";
import { Button } from "../ui/basics";
import { Dialog } from "../ui/dialog";
import { problemIn, ProblemNote } from "../ui/problem";

const HEARD_MS = 2_000;
const FIELD = "mt-1 block w-full rounded-md border border-line bg-panel px-3 py-2";

interface Props {
  card: CardView;
  verb: "approve" | "reject";
  onClose: () => void;
}

type Sent = "no" | "sending" | "unheard";

export function DecisionDialog({ card, verb, onClose }: Props) {
  // What was shown when the dialog opened is what is decided on, whatever comes meanwhile.
  const [{ id, header, money, risk, decision }] = useState(card);
  const [key] = useState(newKey);
  const [reason, setReason] = useState("");
  const [typed, setTyped] = useState("");
  const [sent, setSent] = useState<Sent>("no");
  const [refused, setRefused] = useState<unknown>(null);
  const stream = useLiveStream();
  const refresh = useRefresh();
  const approving = verb === "approve";
  const asked = approving ? decision.type_to_confirm : null;
  const missing = asked !== null && typed !== asked
    ? `type ${asked} to go on`
    : !approving && reason.trim() === ""
      ? "a rejection needs a reason: it is learnt from"
      : null;

  const submit = async (event: FormEvent) => {
    event.preventDefault();
    if (missing !== null || sent === "sending") return;
    setSent("sending");
    setRefused(null);
    try {
      const { data } = await call<Accepted>(`/recommendations/${id}/${verb}`, {
        method: "POST",
        body: { reason },
        headers: { "If-Match": `"${header.version_hash}"`, "Idempotency-Key": key },
      });
      if (data.repeated || (await stream.heard(data.event_id, HEARD_MS))) onClose();
      else setSent("unheard");
    } catch (error) {
      setRefused(error);
      setSent("no");
    }
    void refresh(["recommendation", id]);
  };

  return (
    <Dialog title={approving ? "Approve" : "Reject"} onClose={onClose}>
      <form onSubmit={(event) => void submit(event)} className="space-y-3">
        <p>
          <strong>{header.title}</strong>
          <br />
          <span className="text-muted">
            {risk.level} risk · saves {savingRange(money.saving_usd_per_month)} ·
            version <span className="font-mono text-xs">{header.version_hash}</span>
          </span>
        </p>
        {asked !== null && (
          <label className="block">
            <span>
              This is {risk.level} risk. Type the target’s name,{" "}
              <strong>{asked}</strong>:
            </span>
            <input
              autoFocus
              autoComplete="off"
              value={typed}
              onChange={(event) => setTyped(event.target.value)}
              className={FIELD}
            />
          </label>
        )}
        <label className="block">
          <span>Reason{approving ? " (optional)" : ""}</span>
          <textarea
            autoFocus={asked === null}
            rows={2}
            maxLength={2_000}
            value={reason}
            onChange={(event) => setReason(event.target.value)}
            className={FIELD}
          />
        </label>
        <Refused error={refused} onReview={onClose} />
        {sent === "unheard" && (
          <p role="alert" className="rounded-md border border-warn bg-warn-soft p-3">
            Your decision is written down, but the live stream has not confirmed it within{" "}
            {HEARD_MS / 1_000} s. It is said as soon as the bus takes it; nothing has to be sent
            again.
          </p>
        )}
        <div className="flex flex-wrap items-center gap-2">
          {sent !== "unheard" && (
            <Button
              type="submit"
              look={approving ? "primary" : "danger"}
              why={sent === "sending" ? "waiting for its event" : missing}
            >
              {sent === "sending" ? "Sending" : approving ? "Approve" : "Reject"}
            </Button>
          )}
          <Button onClick={onClose}>{sent === "unheard" ? "Close" : "Cancel"}</Button>
          {missing && <span className="text-sm text-muted">{missing}</span>}
        </div>
      </form>
    </Dialog>
  );
}

function Refused({ error, onReview }: { error: unknown; onReview: () => void }) {
  if (error === null) return null;
  const stale = problemIn(error).status === 412;
  return (
    <ProblemNote error={error}>
      {stale && (
        <Button className="mt-2" onClick={onReview}>
          This changed: review it again
        </Button>
      )}
    </ProblemNote>
  );
}

/** Asks once more before a yes or a no is sent. */
import { useState, type FormEvent } from "react";
import type { CardView } from "../api/types";
import { savingRange } from "../format";
import { Dialog } from "../ui/dialog";
import { FIELD, Sending, useSaying } from "./saying";

interface Props {
  card: CardView;
  verb: "approve" | "reject";
  onClose: () => void;
}

export function DecisionDialog({ card, verb, onClose }: Props) {
  // What was shown when the dialog opened is what is decided on, whatever comes meanwhile.
  const [{ id, header, money, risk, decision }] = useState(card);
  const [reason, setReason] = useState("");
  const [typed, setTyped] = useState("");
  const saying = useSaying(id, header.version_hash, onClose);
  const approving = verb === "approve";
  const asked = approving ? decision.type_to_confirm : null;
  const missing = asked !== null && typed !== asked
    ? `type ${asked} to go on`
    : !approving && reason.trim() === ""
      ? "a rejection needs a reason: it is learnt from"
      : null;

  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (missing === null) void saying.say(verb, { reason });
  };

  return (
    <Dialog title={approving ? "Approve" : "Reject"} onClose={onClose}>
      <form onSubmit={submit} className="space-y-3">
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
        <Sending
          saying={saying}
          verb={approving ? "Approve" : "Reject"}
          danger={!approving}
          missing={missing}
          onClose={onClose}
        />
      </form>
    </Dialog>
  );
}

/** Puts a decision off until one of a few times, or asks for it again. */
import { useState, type FormEvent } from "react";
import type { CardView } from "../api/types";
import { dayAndClock, relative } from "../format";
import { Dialog } from "../ui/dialog";
import { FIELD, Sending, useSaying } from "./saying";

const HOUR_MS = 3_600_000;
const MORNING = 9;

interface Choice {
  name: string;
  at: Date;
}

/** The times on this machine's clock, as the dialog opens. */
function choices(now: number): Choice[] {
  const morning = new Date(now);
  morning.setDate(morning.getDate() + 1);
  morning.setHours(MORNING, 0, 0, 0);
  return [
    { name: "for 1 hour", at: new Date(now + HOUR_MS) },
    { name: "for 4 hours", at: new Date(now + 4 * HOUR_MS) },
    { name: "until tomorrow morning", at: morning },
  ];
}

interface Props {
  card: CardView;
  verb: "snooze" | "wake";
  onClose: () => void;
}

export function SnoozeDialog({ card, verb, onClose }: Props) {
  const [{ id, header }] = useState(card);
  const [now] = useState(Date.now);
  const [reason, setReason] = useState("");
  const expires = header.expires_at === null ? null : new Date(header.expires_at);
  const [until, setUntil] = useState<Date | null>(null);
  const saying = useSaying(id, header.version_hash, onClose);
  const snoozing = verb === "snooze";
  const missing = snoozing && until === null ? "choose until when" : null;

  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (missing !== null) return;
    const body: Record<string, string> = { reason };
    if (until !== null) body["until"] = until.toISOString();
    void saying.say(verb, body);
  };

  return (
    <Dialog title={snoozing ? "Snooze" : "Wake"} onClose={onClose}>
      <form onSubmit={submit} className="space-y-3">
        <p>
          <strong>{header.title}</strong>
          <br />
          <span className="text-muted">
            {snoozing
              ? `Nobody is asked meanwhile, and it cannot be approved. It expires ${expires ? relative(expires.getTime(), now) : "when it did"} all the same.`
              : "It is asked for again at once."}
          </span>
        </p>
        {snoozing && (
          <fieldset className="space-y-1">
            <legend>Until when</legend>
            {choices(now).map(({ name, at }) => {
              const late = expires !== null && at > expires;
              return (
                <label key={name} className="flex items-center gap-2">
                  <input
                    type="radio"
                    name="until"
                    disabled={late}
                    checked={until?.getTime() === at.getTime()}
                    onChange={() => setUntil(at)}
                  />
                  {name}, {dayAndClock(at.getTime())}
                  {late && <span className="text-muted">after it has expired</span>}
                </label>
              );
            })}
          </fieldset>
        )}
        <label className="block">
          <span>Reason (optional)</span>
          <textarea
            rows={2}
            maxLength={2_000}
            value={reason}
            onChange={(event) => setReason(event.target.value)}
            className={FIELD}
          />
        </label>
        <Sending saying={saying} verb={snoozing ? "Snooze" : "Wake"} missing={missing} onClose={onClose} />
      </form>
    </Dialog>
  );
}

/** What a consumer could not handle, and what an operator can do about it. */
import { useState } from "react";
import { call, newKey } from "../api/client";
import type { DeadLetter } from "../api/types";
import { useRefresh } from "../live/context";
import { Ago, Badge, Button, type Tone } from "../ui/basics";
import { Listed, useList } from "./list";
import { DeedDialog, FIELD, Rows } from "./parts";
import { useRefusal } from "./rights";

const TOPIC = ["letters"] as const;
const TONES: Record<DeadLetter["state"], Tone> = { new: "bad", retried: "accent", dropped: "plain" };

interface Asked {
  letter: DeadLetter;
  verb: "retry" | "drop";
}

export function DeadLetters({ consumer }: { consumer: string }) {
  const list = useList<DeadLetter>(TOPIC, `/dead-letters?limit=50&consumer=${encodeURIComponent(consumer)}`);
  const why = useRefusal("letters");
  const [asked, setAsked] = useState<Asked | null>(null);
  return (
    <>
      <Listed list={list}>
        {(letters) =>
          letters.length === 0 ? (
            <p className="text-muted">None: everything was taken, or is still tried.</p>
          ) : (
            <Rows
              label="dead letters, in the order in which they were buried"
              rows={letters.map((letter) => ({
                key: String(letter.number),
                name: <p className="break-words">{letter.error}</p>,
                about: (
                  <span className="flex flex-wrap items-center gap-2">
                    <Badge tone={TONES[letter.state]}>
                      {letter.state === "new" ? "not dealt with" : letter.state}
                    </Badge>
                    {letter.dealt_by && <span className="break-all">by {letter.dealt_by}</span>}
                  </span>
                ),
                times: (
                  <p>
                    no. {letter.number}, buried <Ago at={letter.at} />
                  </p>
                ),
                actions: letter.state === "new" && (
                  <>
                    <Button className="whitespace-nowrap" why={why} onClick={() => setAsked({ letter, verb: "retry" })}>
                      Send again
                    </Button>
                    <Button look="danger" why={why} onClick={() => setAsked({ letter, verb: "drop" })}>
                      Drop
                    </Button>
                  </>
                ),
              }))}
            />
          )
        }
      </Listed>
      {asked && <Deal asked={asked} onClose={() => setAsked(null)} />}
    </>
  );
}

function Deal({ asked: { letter, verb }, onClose }: { asked: Asked; onClose: () => void }) {
  const refresh = useRefresh();
  const [key] = useState(newKey);
  const [reason, setReason] = useState("");
  const dropping = verb === "drop";
  const send = async () => {
    await call(`/dead-letters/${letter.number}/${verb}`, {
      method: "POST",
      body: { reason },
      headers: { "Idempotency-Key": key },
    });
    await refresh(TOPIC);
    onClose();
  };
  return (
    <DeedDialog
      title={`${dropping ? "Drop" : "Send again"}: letter ${letter.number}`}
      verb={dropping ? "Drop" : "Send again"}
      danger={dropping}
      missing={dropping && reason.trim() === "" ? "say why" : null}
      send={send}
      onClose={onClose}
    >
      <p>{letter.error}</p>
      <p className="text-muted">
        {dropping ? "Nothing more comes of it." : "The message is said again as it was; whoever knows it does nothing."}
      </p>
      <label className="block">
        Reason{dropping ? "" : " (optional)"}
        <textarea autoFocus rows={2} maxLength={2_000} value={reason} onChange={(event) => setReason(event.target.value)} className={FIELD} />
      </label>
    </DeedDialog>
  );
}

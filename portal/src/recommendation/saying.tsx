/** Sends a person's word on the version that was shown, and waits until its event has come back. */
import { useState } from "react";
import { call, newKey } from "../api/client";
import type { Accepted } from "../api/types";
import { useLiveStream, useRefresh } from "../live/context";
import { Button } from "../ui/basics";
import { problemIn, ProblemNote } from "../ui/problem";

const HEARD_MS = 2_000;
export const FIELD = "mt-1 block w-full rounded-md border border-line bg-panel px-3 py-2";

export interface Saying {
  sent: "no" | "sending" | "unheard";
  refused: unknown;
  say: (verb: string, body: Record<string, string>) => Promise<void>;
}

export function useSaying(id: string, version: string, onDone: () => void): Saying {
  const [key] = useState(newKey);
  const [sent, setSent] = useState<Saying["sent"]>("no");
  const [refused, setRefused] = useState<unknown>(null);
  const stream = useLiveStream();
  const refresh = useRefresh();
  const say = async (verb: string, body: Record<string, string>) => {
    if (sent === "sending") return;
    setSent("sending");
    setRefused(null);
    try {
      const { data } = await call<Accepted>(`/recommendations/${id}/${verb}`, {
        method: "POST",
        body,
        headers: { "If-Match": `"${version}"`, "Idempotency-Key": key },
      });
      if (data.repeated || (await stream.heard(data.event_id, HEARD_MS))) onDone();
      else setSent("unheard");
    } catch (error) {
      setRefused(error);
      setSent("no");
    }
    void refresh(["recommendation", id]);
  };
  return { sent, refused, say };
}

interface Props {
  saying: Saying;
  verb: string;
  danger?: boolean;
  /** What is missing before it can be sent. */
  missing: string | null;
  onClose: () => void;
}

/** What came of it so far, and the buttons that send it or leave. */
export function Sending({ saying: { sent, refused }, verb, danger, missing, onClose }: Props) {
  const stale = refused !== null && problemIn(refused).status === 412;
  return (
    <>
      {refused !== null && (
        <ProblemNote error={refused}>
          {stale && (
            <Button className="mt-2" onClick={onClose}>
              This changed: review it again
            </Button>
          )}
        </ProblemNote>
      )}
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
            look={danger ? "danger" : "primary"}
            why={sent === "sending" ? "waiting for its event" : missing}
          >
            {sent === "sending" ? "Sending" : verb}
          </Button>
        )}
        <Button onClick={onClose}>{sent === "unheard" ? "Close" : "Cancel"}</Button>
        {missing && <span className="text-sm text-muted">{missing}</span>}
      </div>
    </>
  );
}

/** Who is signed in here, how to sign in elsewhere, and out. */
import { useState } from "react";
import { call } from "../api/client";
import { session } from "../api/session";
import type { Me, SignInLink } from "../api/types";
import { dayAndClock, seconds, UNKNOWN } from "../format";
import { useSnapshot } from "../live/context";
import { useStaleReason } from "../shell/Connection";
import { Button, Facts, Panel } from "../ui/basics";
import { Dialog } from "../ui/dialog";
import { Shown } from "../ui/problem";
import { Copied, DeedDialog } from "./parts";

const EVERY_MS = 60_000;

export function Yourself() {
  const query = useSnapshot<Me>(["session"], "/session", { every: EVERY_MS });
  const stale = useStaleReason();
  const [asked, setAsked] = useState<"link" | "out" | null>(null);
  return (
    <Panel
      title="You"
      aside={
        <span className="flex flex-wrap gap-2">
          <Button why={stale} onClick={() => setAsked("link")}>
            Sign in elsewhere
          </Button>
          <Button look="danger" why={stale} onClick={() => setAsked("out")}>
            End this session
          </Button>
        </span>
      }
    >
      <Shown query={query} lines={4}>
        {({ name, role, tenant, expires_at }) => (
          <Facts
            rows={[
              ["signed in as", name],
              ["role", role],
              ["tenant", tenant],
              [
                "this session",
                expires_at ? `good until ${dayAndClock(expires_at)}; a browser’s is renewed while it is used` : UNKNOWN,
              ],
            ]}
          />
        )}
      </Shown>
      {asked === "link" && <Elsewhere onClose={() => setAsked(null)} />}
      {asked === "out" && <SignOut onClose={() => setAsked(null)} />}
    </Panel>
  );
}

function Elsewhere({ onClose }: { onClose: () => void }) {
  const [link, setLink] = useState<SignInLink | null>(null);
  const send = async () => {
    setLink((await call<SignInLink>("/session/link", { method: "POST" })).data);
  };
  if (link === null) {
    return (
      <DeedDialog title="Sign in elsewhere" verb="Make a link" send={send} onClose={onClose}>
        <p>
          A link signs another browser in as you, once. Whoever opens it is you: show it to nobody else.
        </p>
      </DeedDialog>
    );
  }
  return (
    <Dialog title="Sign in elsewhere" onClose={onClose}>
      <Copied label={`Open this in the other browser within ${seconds(link.expires_in_s)}`} value={link.url} />
      <Button onClick={onClose}>Close</Button>
    </Dialog>
  );
}

function SignOut({ onClose }: { onClose: () => void }) {
  const send = async () => {
    await call("/session", { method: "DELETE" });
    session.end(null);
  };
  return (
    <DeedDialog title="End this session" verb="Sign out" danger send={send} onClose={onClose}>
      <p>
        This browser is signed out, in all its tabs. Other browsers and keys go on: the API cannot end
        them all at once, but an admin who disables you does.
      </p>
    </DeedDialog>
  );
}

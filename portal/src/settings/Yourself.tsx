/** Who is signed in here, where else, how to sign in elsewhere, and out: here, there, everywhere. */
import { useState } from "react";
import { call } from "../api/client";
import { session } from "../api/session";
import type { Me, Page, SignedIn, SignInLink } from "../api/types";
import { dayAndClock, seconds, UNKNOWN } from "../format";
import { useRefresh, useSnapshot } from "../live/context";
import { useStaleReason } from "../shell/Connection";
import { Ago, Badge, Button, Facts, Panel } from "../ui/basics";
import { Dialog } from "../ui/dialog";
import { Shown } from "../ui/problem";
import { Copied, DeedDialog, Rows } from "./parts";

const EVERY_MS = 60_000;
const TOPIC = ["sessions"] as const;

export function Yourself() {
  return (
    <>
      <Here />
      <Everywhere />
    </>
  );
}

function Here() {
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
        This browser is signed out, in all its tabs. Other browsers and keys go on.
      </p>
    </DeedDialog>
  );
}

function Everywhere() {
  const query = useSnapshot<Page<SignedIn>>(TOPIC, "/sessions", { every: EVERY_MS });
  const stale = useStaleReason();
  const [asked, setAsked] = useState<SignedIn | "all" | null>(null);
  return (
    <Panel
      title="Where you are signed in"
      aside={
        <Button look="danger" why={stale} onClick={() => setAsked("all")}>
          Sign out everywhere
        </Button>
      }
    >
      <Shown query={query} lines={3}>
        {({ items }) => <Sessions rows={items} why={stale} ask={setAsked} />}
      </Shown>
      {asked === "all" && <SignOutEverywhere onClose={() => setAsked(null)} />}
      {asked !== null && asked !== "all" && <SignOutThere there={asked} onClose={() => setAsked(null)} />}
    </Panel>
  );
}

interface SessionsProps {
  rows: SignedIn[];
  why: string | null;
  ask: (one: SignedIn) => void;
}

function Sessions({ rows, why, ask }: SessionsProps) {
  return (
    <Rows
      label="your sessions"
      rows={rows.map((row) => ({
        key: row.id,
        name: <p className="text-sm break-words">{row.agent ?? `${UNKNOWN} (it did not say what it is)`}</p>,
        about: (
          <span className="flex flex-wrap items-center gap-2">
            {row.browser ? "browser" : "program"}
            {row.here && <Badge tone="accent">this one</Badge>}
          </span>
        ),
        times: (
          <>
            <p>
              signed in <Ago at={row.signed_in_at} />, used last <Ago at={row.last_used_at} />
            </p>
            <p>{row.expires_at ? `good until ${dayAndClock(row.expires_at)}` : "good until it is ended"}</p>
          </>
        ),
        actions: (
          <Button look="danger" aria-label={`sign out of ${nameOf(row)}`} why={why} onClick={() => ask(row)}>
            Sign out
          </Button>
        ),
      }))}
    />
  );
}

function nameOf(row: SignedIn): string {
  const what = row.agent ?? (row.browser ? "a browser" : "a program");
  return row.here ? `this one, ${what}` : what;
}

function SignOutThere({ there, onClose }: { there: SignedIn; onClose: () => void }) {
  const refresh = useRefresh();
  const send = async () => {
    await call(`/sessions/${there.id}`, { method: "DELETE" });
    if (there.here) session.end(null);
    else await refresh(TOPIC);
    onClose();
  };
  return (
    <DeedDialog title="Sign out there" verb="Sign out" danger send={send} onClose={onClose}>
      <p className="break-words">{nameOf(there)}</p>
      <p className="text-muted">
        It is renewed no more from now on, and shown nothing new within 5 s (an open live stream: 20 s).
      </p>
    </DeedDialog>
  );
}

function SignOutEverywhere({ onClose }: { onClose: () => void }) {
  const send = async () => {
    await call("/sessions", { method: "DELETE" });
    session.end(null);
  };
  return (
    <DeedDialog title="Sign out everywhere" verb="Sign out everywhere" danger send={send} onClose={onClose}>
      <p>
        All your sessions end, this one too, and so do links that were made but not opened. Your keys go
        on: revoke them in Settings, Keys.
      </p>
    </DeedDialog>
  );
}

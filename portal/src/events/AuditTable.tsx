/** Who did what, also what was denied; and the proof that nobody altered the log. */
import { useState } from "react";
import { call } from "../api/client";
import { includes } from "../api/session";
import type { AuditRow, Page, Verification } from "../api/types";
import { count } from "../format";
import { useSnapshot } from "../live/context";
import { useSession } from "../shell/session";
import { sinceOf, RANGE_NAMES, useScope } from "../shell/scope";
import { Ago, Badge, Button, Empty, Raw } from "../ui/basics";
import { ProblemNote, Shown } from "../ui/problem";
import { Table } from "../ui/table";

const EVERY_MS = 10_000;
/** Walking all chains of a long log takes its time. */
const WALK_MS = 120_000;
const MOST_BREAKS = 10;
const LINK =
  "inline-flex min-h-8 items-center rounded-md border border-line bg-panel px-3 py-1 text-sm font-medium hover:bg-raised";

export function AuditTable() {
  const who = useSession();
  if (who && includes(who.role, "operator")) return <Trail />;
  return (
    <Empty
      why="The audit trail is for operators."
      next={`You are signed in as ${who?.role ?? "nobody"}. Ask an administrator for the role operator.`}
    />
  );
}

function Trail() {
  const [denied, setDenied] = useState(false);
  const path = `/audit?limit=200${denied ? "&allowed=false" : ""}`;
  const query = useSnapshot<Page<AuditRow>>(["events", "audit"], path, { every: EVERY_MS });
  return (
    <div className="space-y-3">
      <div className="flex flex-wrap items-center gap-4">
        <label className="flex items-center gap-2">
          <input type="checkbox" checked={denied} onChange={(event) => setDenied(event.target.checked)} />
          only what was denied
        </label>
        <Verify />
        <Export />
      </div>
      <div className="rounded-lg border border-line bg-panel p-4">
        <Shown query={query} lines={8}>
          {({ items, next }) =>
            items.length === 0 ? (
              <Empty why={denied ? "Nothing was denied." : "Nobody has done anything yet."} />
            ) : (
              <>
                <Table
                  label="audit trail, the latest first"
                  head={["when", "who", "what", "on", "", "detail"]}
                  rows={items.map((row) => [
                    <Ago key="at" at={row.at} />,
                    row.actor,
                    row.action,
                    <span key="target" className="font-mono text-xs break-all">
                      {row.target}
                    </span>,
                    <Badge key="allowed" tone={row.allowed ? "good" : "bad"}>
                      {row.allowed ? "allowed" : "denied"}
                    </Badge>,
                    <Raw key="detail" value={row.detail} label="detail" />,
                  ])}
                />
                {next && <p className="mt-2 text-muted">The latest 200 are shown.</p>}
              </>
            )
          }
        </Shown>
      </div>
    </div>
  );
}

/** A download that the browser streams to a file; its last line seals it. */
function Export() {
  const { range } = useScope();
  const [whole, setWhole] = useState(false);
  const since = sinceOf(range);
  return (
    <span className="flex flex-wrap items-center gap-2">
      <a
        download
        href={`/api/v1/audit/export${whole ? "" : `?since=${encodeURIComponent(since)}`}`}
        title="Check it with: optiinfra audit verify --file FILE"
        className={LINK}
      >
        Export {whole ? "everything" : `the ${RANGE_NAMES[range]}`}
      </a>
      <label className="flex items-center gap-2">
        <input type="checkbox" checked={whole} onChange={(event) => setWhole(event.target.checked)} />
        from the beginning
      </label>
    </span>
  );
}

function Verify() {
  const [found, setFound] = useState<Verification | null>(null);
  const [failed, setFailed] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const verify = async () => {
    setBusy(true);
    setFailed(null);
    try {
      setFound((await call<Verification>("/audit/verify", { within: WALK_MS })).data);
    } catch (error) {
      setFailed(error);
    }
    setBusy(false);
  };
  return (
    <>
      <Button why={busy ? "walking the chains" : null} onClick={() => void verify()}>
        Verify the log
      </Button>
      {found && (
        <div role="status">
          <Badge tone={found.ok ? "good" : "bad"}>{found.ok ? "whole" : "broken"}</Badge>{" "}
          {count(found.events)} events in {count(found.chains)} chains
          {found.breaks.length > 0 && (
            <ul className="mt-1">
              {found.breaks.slice(0, MOST_BREAKS).map((one) => (
                <li key={`${one.chain} ${one.version} ${one.what}`} className="text-bad">
                  {one.chain} at version {one.version}: {one.what}
                </li>
              ))}
              {found.breaks.length > MOST_BREAKS && <li>and {count(found.breaks.length - MOST_BREAKS)} more</li>}
            </ul>
          )}
        </div>
      )}
      {failed !== null && <ProblemNote error={failed} />}
    </>
  );
}

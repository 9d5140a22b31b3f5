/** Who did what, also what was denied; and the proof that nobody altered the log. */
import { useState } from "react";
import { call } from "../api/client";
import type { AuditRow, Page, Verification } from "../api/types";
import { count } from "../format";
import { useSnapshot } from "../live/context";
import { Ago, Badge, Button, Empty, Raw } from "../ui/basics";
import { ProblemNote, Shown } from "../ui/problem";
import { Table } from "../ui/table";

const EVERY_MS = 10_000;

export function AuditTable() {
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

function Verify() {
  const [found, setFound] = useState<Verification | null>(null);
  const [failed, setFailed] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const verify = async () => {
    setBusy(true);
    setFailed(null);
    try {
      setFound((await call<Verification>("/audit/verify")).data);
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
        <span role="status">
          <Badge tone={found.ok ? "good" : "bad"}>{found.ok ? "whole" : "broken"}</Badge>{" "}
          {count(found.events)} events in {count(found.chains)} chains
          {found.breaks[0] && `; the first break: ${found.breaks[0].what}`}
        </span>
      )}
      {failed !== null && <ProblemNote error={failed} />}
    </>
  );
}

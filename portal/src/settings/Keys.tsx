/** Keys of programs: made with some of one's own permissions, shown once, revoked. */
import { useState } from "react";
import { call } from "../api/client";
import type { Key, KeyMade, Permission } from "../api/types";
import { useRefresh } from "../live/context";
import { useSession } from "../shell/session";
import { Ago, Badge, Button, Code, Empty, Panel, useNow } from "../ui/basics";
import { Dialog } from "../ui/dialog";
import { Listed, useList } from "./list";
import { Copied, DeedDialog, FIELD, Forbidden, Rows } from "./parts";
import { ALLOWS, PERMISSIONS, refusal, useRefusal } from "./rights";

const TOPIC = ["keys"] as const;
const SOON_MS = 7 * 86_400_000;
const MOST_DAYS = 365;

export function Keys() {
  const who = useSession();
  if (refusal(who?.role, "keys") !== null) return <Forbidden title="Keys of programs" permission="keys" />;
  return <OwnKeys all={refusal(who?.role, "users") === null} />;
}

function OwnKeys({ all }: { all: boolean }) {
  const list = useList<Key>(TOPIC, "/keys?limit=100");
  const why = useRefusal("keys");
  const [making, setMaking] = useState(false);
  const [revoked, setRevoked] = useState<Key | null>(null);
  return (
    <Panel
      title={all ? "Keys of everybody" : "Your keys"}
      aside={
        <Button look="primary" why={why} onClick={() => setMaking(true)}>
          Make a key
        </Button>
      }
    >
      <p className="mb-3 text-muted">
        What a program does with a key is done in its maker’s name, never with more than the maker’s
        role of the moment. {all ? "As an admin you see everybody’s." : "An admin sees them, too."}
      </p>
      <Listed list={list}>
        {(keys) =>
          keys.length === 0 ? (
            <Empty
              why="There is no key."
              next={
                <>
                  Make one here, or with <Code>optiinfra keys create</Code>.
                </>
              }
            />
          ) : (
            <KeyTable keys={keys} why={why} revoke={setRevoked} />
          )
        }
      </Listed>
      {making && <Make onClose={() => setMaking(false)} />}
      {revoked && <Revoke one={revoked} onClose={() => setRevoked(null)} />}
    </Panel>
  );
}

interface TableProps {
  keys: Key[];
  why: string | null;
  revoke: (key: Key) => void;
}

function KeyTable({ keys, why, revoke }: TableProps) {
  return (
    <Rows
      label="keys, the newest first"
      rows={keys.map((key) => ({
        key: key.id,
        name: (
          <>
            <p className="font-medium break-words">{key.label}</p>
            <p className="font-mono text-xs text-muted">{key.id}</p>
            <p className="text-xs break-words text-muted">
              of {key.owner}, made as {key.role} <Ago at={key.created_at} />
            </p>
          </>
        ),
        about: (
          <span className="flex flex-wrap items-center gap-1">
            may
            {key.scopes.map((scope) => (
              <Badge key={scope}>{scope}</Badge>
            ))}
          </span>
        ),
        times: (
          <>
            <p>
              expires <Expiry at={key.expires_at} />
            </p>
            <p>used last: {key.last_used_at ? <Ago at={key.last_used_at} /> : "never"}</p>
          </>
        ),
        actions: (
          <Button
            data-row=""
            look="danger"
            aria-label={`revoke ${key.label}`}
            why={why}
            onClick={() => revoke(key)}
          >
            Revoke
          </Button>
        ),
      }))}
    />
  );
}

function Expiry({ at }: { at: string }) {
  const left = new Date(at).getTime() - useNow(5_000);
  if (left <= 0) return <Badge tone="bad">expired</Badge>;
  if (left > SOON_MS) return <Ago at={at} />;
  return (
    <Badge tone="warn">
      <Ago at={at} />
    </Badge>
  );
}

function Make({ onClose }: { onClose: () => void }) {
  const refresh = useRefresh();
  const who = useSession();
  const [label, setLabel] = useState("");
  const [scopes, setScopes] = useState<Permission[]>(["read"]);
  const [days, setDays] = useState("90");
  const [made, setMade] = useState<KeyMade | null>(null);
  const wholeDays = /^\d+$/.test(days) ? Number(days) : 0;
  const missing =
    label.trim() === ""
      ? "say what it is for"
      : scopes.length === 0
        ? "it must be allowed something"
        : wholeDays < 1 || wholeDays > MOST_DAYS
          ? `it lasts 1 to ${MOST_DAYS} days`
          : null;
  const send = async () => {
    const body = { label: label.trim(), scopes, days: wholeDays };
    setMade((await call<KeyMade>("/keys", { method: "POST", body })).data);
    await refresh(TOPIC);
  };
  if (made !== null) return <Secret made={made} onClose={onClose} />;
  return (
    <DeedDialog title="Make a key" verb="Make it" missing={missing} send={send} onClose={onClose}>
      <label className="block">
        What it is for
        <input autoFocus autoComplete="off" maxLength={100} value={label} onChange={(event) => setLabel(event.target.value)} className={FIELD} />
      </label>
      <fieldset>
        <legend>What it may do</legend>
        {PERMISSIONS.map((permission) => (
          <Scope
            key={permission}
            permission={permission}
            why={permission === "keys" ? "a key cannot make keys" : refusal(who?.role, permission)}
            chosen={scopes.includes(permission)}
            choose={(on) =>
              setScopes((before) => [...before.filter((one) => one !== permission), ...(on ? [permission] : [])])
            }
          />
        ))}
      </fieldset>
      <label className="block">
        How many days it is good for (1 to {MOST_DAYS})
        <input type="number" min={1} max={MOST_DAYS} value={days} onChange={(event) => setDays(event.target.value)} className={FIELD} />
      </label>
    </DeedDialog>
  );
}

interface ScopeProps {
  permission: Permission;
  why: string | null;
  chosen: boolean;
  choose: (on: boolean) => void;
}

function Scope({ permission, why, chosen, choose }: ScopeProps) {
  return (
    <label className="flex items-start gap-2 py-0.5">
      <input
        type="checkbox"
        className="mt-1"
        disabled={why !== null}
        checked={chosen}
        onChange={(event) => choose(event.target.checked)}
      />
      <span>
        <strong>{permission}</strong> <span className="text-muted">{why ?? ALLOWS[permission]}</span>
      </span>
    </label>
  );
}

function Secret({ made, onClose }: { made: KeyMade; onClose: () => void }) {
  return (
    <Dialog title="The key" onClose={onClose}>
      <p role="alert" className="rounded-md border border-warn bg-warn-soft p-3">
        Copy it now: nobody can show it again. Who has it may do what it may do.
      </p>
      <Copied label={made.label} value={made.key} />
      <p className="text-muted">
        Send it as <Code>Authorization: Bearer …</Code>
      </p>
      <Button onClick={onClose}>I have kept it</Button>
    </Dialog>
  );
}

function Revoke({ one, onClose }: { one: Key; onClose: () => void }) {
  const refresh = useRefresh();
  const send = async () => {
    await call(`/keys/${one.id}`, { method: "DELETE" });
    await refresh(TOPIC);
    onClose();
  };
  return (
    <DeedDialog title={`Revoke ${one.label}`} verb="Revoke" danger send={send} onClose={onClose}>
      <p>
        <span className="font-mono text-xs">{one.id}</span> of {one.owner} ends at once and for good.
        {one.last_used_at ? (
          <>
            {" "}
            It was used <Ago at={one.last_used_at} />.
          </>
        ) : (
          " It was never used."
        )}
      </p>
    </DeedDialog>
  );
}

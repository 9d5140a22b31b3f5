/** Oneself, and (for an admin) who may sign in with what role. */
import { useState } from "react";
import { call } from "../api/client";
import { includes } from "../api/session";
import type { Role, SessionsEnded, User } from "../api/types";
import { useRefresh } from "../live/context";
import { useSession } from "../shell/session";
import { Ago, Badge, Button, Empty, Panel } from "../ui/basics";
import { Dialog } from "../ui/dialog";
import { Table } from "../ui/table";
import { Listed, useList } from "./list";
import { DeedDialog, FIELD, Forbidden, Rows } from "./parts";
import { ALLOWS, LEAST_ROLE, PERMISSIONS, ROLES, refusal, useRefusal } from "./rights";
import { Yourself } from "./Yourself";

const TOPIC = ["users"] as const;

export function People() {
  const who = useSession();
  return (
    <>
      <Yourself />
      {refusal(who?.role, "users") === null ? (
        <Users />
      ) : (
        <Forbidden title="Who may sign in" permission="users" />
      )}
      <Rights />
    </>
  );
}

type Asked = { verb: "add" } | { verb: "role" | "access" | "out"; user: User };

function Users() {
  const list = useList<User>(TOPIC, "/users?limit=100");
  const why = useRefusal("users");
  const [find, setFind] = useState("");
  const [asked, setAsked] = useState<Asked | null>(null);
  const wanted = find.toLowerCase();
  return (
    <Panel
      title="Who may sign in"
      aside={
        <Button look="primary" why={why} onClick={() => setAsked({ verb: "add" })}>
          Add somebody
        </Button>
      }
    >
      <input
        data-search=""
        type="search"
        aria-label="search people"
        placeholder="Search people ( / )"
        value={find}
        onChange={(event) => setFind(event.target.value)}
        className="mb-3 w-full max-w-sm rounded-md border border-line bg-panel px-3 py-1.5 placeholder:text-muted"
      />
      <Listed list={list}>
        {(users) => {
          const shown = users.filter((user) => `${user.email} ${user.name}`.toLowerCase().includes(wanted));
          if (shown.length > 0) return <UserTable users={shown} why={why} ask={setAsked} />;
          return users.length > 0 ? (
            <Empty why="Nobody here is called that." />
          ) : (
            <Empty
              why="Nobody is declared yet."
              next="Whoever runs `optiinfra up` is the local operator, an admin, and stands in no list. Add those who sign in at a provider."
            />
          );
        }}
      </Listed>
      {asked?.verb === "add" && <Add onClose={() => setAsked(null)} />}
      {asked?.verb === "role" && <ChangeRole user={asked.user} onClose={() => setAsked(null)} />}
      {asked?.verb === "out" && <EndSessions user={asked.user} onClose={() => setAsked(null)} />}
      {asked?.verb === "access" && <ChangeAccess user={asked.user} onClose={() => setAsked(null)} />}
    </Panel>
  );
}

interface TableProps {
  users: User[];
  why: string | null;
  ask: (asked: Asked) => void;
}

function UserTable({ users, why, ask }: TableProps) {
  const me = useSession();
  return (
    <Rows
      label="people by e-mail"
      rows={users.map((user) => ({
        key: user.id,
        name: (
          <>
            <p className="font-medium break-words">{user.name}</p>
            <p className="text-xs break-all text-muted">{user.email}</p>
          </>
        ),
        about: (
          <span className="flex flex-wrap items-center gap-2">
            {user.role}
            <Badge tone={user.disabled ? "bad" : "good"}>{user.disabled ? "disabled" : "may sign in"}</Badge>
            {user.email === me?.name && <Badge tone="accent">you</Badge>}
          </span>
        ),
        times: (
          <>
            <p>
              signed in last: {user.last_signed_in_at ? <Ago at={user.last_signed_in_at} /> : "never"}
            </p>
            <p>
              added <Ago at={user.created_at} />
            </p>
          </>
        ),
        actions: (
          <>
            <Button
              data-row=""
              aria-label={`change the role of ${user.email}`}
              why={why}
              onClick={() => ask({ verb: "role", user })}
            >
              Role
            </Button>
            <Button
              aria-label={`end the sessions of ${user.email}`}
              why={why}
              onClick={() => ask({ verb: "out", user })}
            >
              Sign out
            </Button>
            <Button
              look={user.disabled ? "plain" : "danger"}
              aria-label={`${user.disabled ? "let in" : "disable"} ${user.email}`}
              why={why}
              onClick={() => ask({ verb: "access", user })}
            >
              {user.disabled ? "Let in" : "Disable"}
            </Button>
          </>
        ),
      }))}
    />
  );
}

function Add({ onClose }: { onClose: () => void }) {
  const refresh = useRefresh();
  const [email, setEmail] = useState("");
  const [name, setName] = useState("");
  const [role, setRole] = useState<Role>("viewer");
  const missing = !/^[^@\s]+@[^@\s]+$/.test(email)
    ? "the e-mail is needed"
    : name.trim() === ""
      ? "a name is needed"
      : null;
  const send = async () => {
    await call<User>("/users", { method: "POST", body: { email, name: name.trim(), role } });
    await refresh(TOPIC);
    onClose();
  };
  return (
    <DeedDialog title="Add somebody" verb="Add" missing={missing} send={send} onClose={onClose}>
      <p className="text-muted">
        No mail is sent. Whoever proves this e-mail at a sign-in provider gets in with this role.
      </p>
      <label className="block">
        E-mail
        <input autoFocus type="email" autoComplete="off" maxLength={255} value={email} onChange={(event) => setEmail(event.target.value)} className={FIELD} />
      </label>
      <label className="block">
        Name
        <input autoComplete="off" maxLength={100} value={name} onChange={(event) => setName(event.target.value)} className={FIELD} />
      </label>
      <RoleField role={role} choose={setRole} />
    </DeedDialog>
  );
}

function RoleField({ role, choose }: { role: Role; choose: (role: Role) => void }) {
  return (
    <label className="block">
      Role
      <select value={role} onChange={(event) => choose(event.target.value as Role)} className={FIELD}>
        {ROLES.map((one) => (
          <option key={one}>{one}</option>
        ))}
      </select>
    </label>
  );
}

function ChangeRole({ user, onClose }: { user: User; onClose: () => void }) {
  const refresh = useRefresh();
  const [role, setRole] = useState<Role>(user.role);
  const send = async () => {
    await call<User>(`/users/${user.id}`, { method: "PATCH", body: { role } });
    await refresh(TOPIC);
    onClose();
  };
  return (
    <DeedDialog
      title={`Role of ${user.email}`}
      verb="Change the role"
      missing={role === user.role ? `the role is ${role} already` : null}
      send={send}
      onClose={onClose}
    >
      <RoleField role={role} choose={setRole} />
      <p className="text-muted">
        It holds for all sessions and keys of this person, within 5 s everywhere. The last admin stays one.
      </p>
    </DeedDialog>
  );
}

function EndSessions({ user, onClose }: { user: User; onClose: () => void }) {
  const [ended, setEnded] = useState<number | null>(null);
  const send = async () => {
    setEnded((await call<SessionsEnded>(`/users/${user.id}/sessions`, { method: "DELETE" })).data.ended);
  };
  if (ended !== null) {
    return (
      <Dialog title={`Sessions of ${user.email}`} onClose={onClose}>
        <p role="status">{ended === 1 ? "1 session was ended." : `${ended} sessions were ended.`}</p>
        <Button onClick={onClose}>Close</Button>
      </Dialog>
    );
  }
  return (
    <DeedDialog title={`Sessions of ${user.email}`} verb="End them all" danger send={send} onClose={onClose}>
      <p>
        This person is signed out in all browsers and programs, and may sign in again. Keys go on.
      </p>
    </DeedDialog>
  );
}

function ChangeAccess({ user, onClose }: { user: User; onClose: () => void }) {
  const refresh = useRefresh();
  const disabled = !user.disabled;
  const send = async () => {
    await call<User>(`/users/${user.id}`, { method: "PATCH", body: { disabled } });
    await refresh(TOPIC);
    onClose();
  };
  return (
    <DeedDialog
      title={`${disabled ? "Disable" : "Let in"} ${user.email}`}
      verb={disabled ? "Disable" : "Let in again"}
      danger={disabled}
      send={send}
      onClose={onClose}
    >
      <p>
        {disabled
          ? "All sessions and keys of this person end at once, and for good: letting the person in again brings none of them back. The last admin cannot be disabled."
          : `This person may sign in again, as ${user.role}. Keys and sessions that were ended stay ended.`}
      </p>
    </DeedDialog>
  );
}

function Rights() {
  const who = useSession();
  return (
    <Panel title="Who may do what">
      <Table
        label="permissions and the least role that has them"
        head={["permission", "allows", "needs at least"]}
        rows={PERMISSIONS.map((permission) => {
          const mine = who !== null && includes(who.role, LEAST_ROLE[permission]);
          return [
            permission,
            ALLOWS[permission],
            <span key="least" className="flex flex-wrap gap-x-2">
              {LEAST_ROLE[permission]}
              <Badge tone={mine ? "good" : "plain"}>{mine ? "you may" : "you may not"}</Badge>
            </span>,
          ];
        })}
      />
      <p className="mt-2 text-muted">
        A higher role may do all that a lower one may. What is denied stands in the audit trail.
      </p>
    </Panel>
  );
}

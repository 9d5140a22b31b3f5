/** What each permission allows and from which role on, as the API's table says; a test compares. */
import { includes } from "../api/session";
import type { Permission, Role } from "../api/types";
import { useStaleReason } from "../shell/Connection";
import { useSession } from "../shell/session";

export const ROLES: readonly Role[] = ["viewer", "operator", "approver", "admin"];

export const LEAST_ROLE: Record<Permission, Role> = {
  read: "viewer",
  audit: "operator",
  control: "operator",
  switch: "operator",
  letters: "operator",
  decide: "approver",
  keys: "operator",
  users: "admin",
};

export const ALLOWS: Record<Permission, string> = {
  read: "see everything but audit trail, dead letters, keys and people; the live stream",
  audit: "see the audit trail, dead letters and notifications",
  control: "pause, resume, promote, abort and roll back changes; test a notification target",
  switch: "turn the stop switch",
  letters: "send dead letters again, drop them",
  decide: "approve, reject and snooze recommendations",
  keys: "make, list and revoke one’s own keys; an admin everybody’s",
  users: "add people, give roles, shut people out",
};

export const PERMISSIONS = Object.keys(LEAST_ROLE) as Permission[];

/** Why a role may not do this; null when it may. */
export function refusal(role: Role | undefined, permission: Permission): string | null {
  const least = LEAST_ROLE[permission];
  return role && includes(role, least) ? null : `it needs the role ${least}`;
}

/** Why the person who is signed in cannot do this now: the role, or the connection. */
export function useRefusal(permission: Permission): string | null {
  const who = useSession();
  const stale = useStaleReason();
  return refusal(who?.role, permission) ?? stale;
}

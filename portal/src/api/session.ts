/** Who is signed in here. The session itself is a cookie that no script can read. */
import type { Me, Role } from "./types";

export interface SignedIn {
  name: string;
  role: Role;
  tenant: string;
}

type Listener = () => void;

class SessionStore {
  private current: SignedIn | null = null;
  private listeners = new Set<Listener>();
  /** Why the person was signed out, to be said on the sign-in page. */
  ended: string | null = null;

  get = (): SignedIn | null => this.current;

  begin({ name, role, tenant }: Me): void {
    this.current = { name, role, tenant };
    this.ended = null;
    this.tell();
  }

  end(why: string | null): void {
    if (this.current === null) return;
    this.current = null;
    this.ended = why;
    this.tell();
  }

  subscribe = (listener: Listener): Listener => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  private tell(): void {
    for (const listener of this.listeners) listener();
  }
}

export const session = new SessionStore();

const RANKS: Role[] = ["viewer", "operator", "approver", "admin"];

/** Whether a role may do what `least` may; the API decides, this only explains beforehand. */
export function includes(role: Role, least: Role): boolean {
  return RANKS.indexOf(role) >= RANKS.indexOf(least);
}

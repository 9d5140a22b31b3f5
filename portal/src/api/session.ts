/** Who is signed in here: kept for this tab, and given up when the API says so. */
import type { Role, Session } from "./types";

const KEPT = "optiinfra.session";

export interface SignedIn {
  token: string;
  name: string;
  role: Role;
  tenant: string;
}

type Listener = () => void;

class SessionStore {
  private current: SignedIn | null = read();
  private listeners = new Set<Listener>();
  /** Why the person was signed out, to be said on the sign-in page. */
  ended: string | null = null;

  get = (): SignedIn | null => this.current;

  begin(session: Session): void {
    const { token, name, role, tenant } = session;
    this.current = { token, name, role, tenant };
    this.ended = null;
    sessionStorage.setItem(KEPT, JSON.stringify(this.current));
    this.tell();
  }

  end(why: string | null): void {
    if (this.current === null) return;
    this.current = null;
    this.ended = why;
    sessionStorage.removeItem(KEPT);
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

function read(): SignedIn | null {
  try {
    const kept = sessionStorage.getItem(KEPT);
    return kept === null ? null : (JSON.parse(kept) as SignedIn);
  } catch {
    return null;
  }
}

export const session = new SessionStore();

const RANKS: Role[] = ["viewer", "operator", "approver", "admin"];

/** Whether a role may do what `least` may; the API decides, this only explains beforehand. */
export function includes(role: Role, least: Role): boolean {
  return RANKS.indexOf(role) >= RANKS.indexOf(least);
}

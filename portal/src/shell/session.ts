/** Who is signed in, for components. */
import { useSyncExternalStore } from "react";
import { session, type SignedIn } from "../api/session";

export function useSession(): SignedIn | null {
  return useSyncExternalStore(session.subscribe, session.get);
}

/**
 * A link signs in with a one-time token in its fragment, which no server and no log ever sees;
 * without one, the session that the browser has goes on.
 */
import { signIn, takeUp } from "./api/client";

/** What a link's token led to, when it was not accepted. */
export let linkRefused: unknown = null;

export async function signInByLink(): Promise<void> {
  const token = new URLSearchParams(window.location.hash.slice(1)).get("token");
  if (token === null) return takeUp();
  window.history.replaceState(null, "", window.location.pathname);
  try {
    await signIn(token);
  } catch (refused) {
    linkRefused = refused;
  }
}

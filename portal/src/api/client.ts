/** One call of the API: the session's cookie goes along, and every error is a problem document. */
import { session } from "./session";
import type { Me, Problem } from "./types";

const TIMEOUT_MS = 10_000;

export class ProblemError extends Error {
  constructor(readonly problem: Problem) {
    super(problem.detail);
  }
}

export interface Answer<T> {
  data: T;
  /** Up to which sequence of the live stream the answer is complete; null when it is no snapshot. */
  seq: number | null;
}

export interface Options {
  method?: "GET" | "POST" | "PATCH" | "DELETE";
  body?: unknown;
  headers?: Record<string, string>;
  token?: string;
  /** How long the answer may take, ms. */
  within?: number;
}

export async function call<T>(path: string, options: Options = {}): Promise<Answer<T>> {
  let answer = await send(path, options);
  if (answer.status === 401 && options.token === undefined && (await goOn())) {
    answer = await send(path, options);
  }
  if (!answer.ok) {
    const problem = await problemOf(answer, path);
    if (answer.status === 401 && options.token === undefined) session.end(problem.detail);
    throw new ProblemError(problem);
  }
  const seq = answer.headers.get("X-Event-Seq");
  const data = answer.status === 204 ? undefined : await answer.json();
  return { data: data as T, seq: seq === null ? null : Number(seq) };
}

export async function signIn(oneTimeToken: string): Promise<void> {
  const { data } = await call<Me>("/session/browser", { method: "POST", token: oneTimeToken });
  session.begin(data);
}

/** Takes up the session that this browser has, if it has one. */
export async function takeUp(): Promise<void> {
  try {
    session.begin((await call<Me>("/session")).data);
  } catch (failed) {
    if (!(failed instanceof ProblemError)) throw failed;
  }
}

let going: Promise<boolean> | null = null;

/**
 * Has the session go on for another while, once for all calls that found it over.
 *
 * One tab at a time: the renewal works once, and whoever repeats it is taken for a thief. A tab
 * that waited for another finds the session renewed.
 */
function goOn(): Promise<boolean> {
  going ??= oneTab(async () => {
    if ((await send("/session", {})).ok) return true;
    return (await send("/session/refresh", { method: "POST" })).ok;
  }).finally(() => {
    going = null;
  });
  return going;
}

/** `locks` is there on this machine and behind TLS, which is where sessions are. */
async function oneTab(work: () => Promise<boolean>): Promise<boolean> {
  const locks = navigator.locks as LockManager | undefined;
  return locks === undefined ? await work() : await locks.request("optiinfra.session", work);
}

async function send(path: string, options: Options): Promise<Response> {
  const headers: Record<string, string> = { ...options.headers };
  if (options.token !== undefined) headers["Authorization"] = `Bearer ${options.token}`;
  if (options.body !== undefined) headers["Content-Type"] = "application/json";
  try {
    return await fetch(path.startsWith("/api/") ? path : `/api/v1${path}`, {
      method: options.method ?? "GET",
      headers,
      body: options.body === undefined ? null : JSON.stringify(options.body),
      signal: AbortSignal.timeout(options.within ?? TIMEOUT_MS),
      credentials: "same-origin",
      cache: "no-store",
    });
  } catch {
    throw new ProblemError({
      type: "urn:optiinfra:problem:no-answer",
      title: "No answer",
      status: 0,
      detail: "the API did not answer",
      hint: "is `optiinfra up` still running, and does this machine reach it?",
      instance: path,
      request_id: "",
    });
  }
}

async function problemOf(answer: Response, path: string): Promise<Problem> {
  try {
    const found = (await answer.json()) as Partial<Problem>;
    if (typeof found.detail === "string") return found as Problem;
  } catch {
    // What stands between us and the API may answer in its own words.
  }
  return {
    type: "about:blank",
    title: answer.statusText || "Error",
    status: answer.status,
    detail: `the answer was ${answer.status}, without a reason`,
    instance: path,
    request_id: answer.headers.get("X-Request-Id") ?? "",
  };
}

/** Names a request, so that sending it twice does it once; also where `crypto` is not "secure". */
export function newKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

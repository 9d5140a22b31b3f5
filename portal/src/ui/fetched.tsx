/** Parts of the program that come when they are needed, from a server that may be away just then. */
import { CatchBoundary } from "@tanstack/react-router";
import { Suspense, type ReactNode } from "react";
import { Button, Skeleton } from "./basics";
import { ProblemNote } from "./problem";

const AGAIN_MS = 1_000;
const ANSWER_MS = 3_000;
const LONGEST_MS = 30_000;
const SAID = "A part of this page could not be fetched: the server is away or has been updated.";

/** What `load` imports, once the server gives the program's files; asked for half a minute. */
export async function fetched<T>(load: () => Promise<T>): Promise<T> {
  const until = Date.now() + LONGEST_MS;
  while (!(await isThere())) {
    if (Date.now() > until) throw new Error(SAID);
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
  try {
    return await load();
  } catch (error) {
    throw new Error(SAID, { cause: error });
  }
}

/** Asked before each import: Chromium 150 never asks again for a module that failed once. */
async function isThere(): Promise<boolean> {
  try {
    const answer = await fetch(import.meta.url, {
      method: "HEAD",
      cache: "no-store",
      signal: AbortSignal.timeout(ANSWER_MS),
    });
    return answer.ok;
  } catch {
    return false;
  }
}

/** Stands where something could not be shown; what is around it stays. */
export function Broken({ error }: { error: unknown }) {
  return (
    <ProblemNote error={error}>
      <Button className="mt-2" onClick={() => window.location.reload()}>
        Reload the page
      </Button>
    </ProblemNote>
  );
}

/** Something with fetched parts: a skeleton of the class `height` until they are there. */
export function Fetched({ height, children }: { height: string; children: ReactNode }) {
  return (
    <CatchBoundary getResetKey={() => height} errorComponent={Broken}>
      <Suspense fallback={<Skeleton lines={1} height={height} />}>{children}</Suspense>
    </CatchBoundary>
  );
}

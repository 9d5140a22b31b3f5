/** Parts of the program that come when they are needed, from a server that may be away just then. */
import { CatchBoundary } from "@tanstack/react-router";
import { Suspense, type ReactNode } from "react";
import { Button, Skeleton } from "./basics";
import { ProblemNote } from "./problem";

const AGAIN_MS = 1_000;
const LONGEST_MS = 30_000;

/** What `load` imports; asked for again while the server does not give it, for half a minute. */
export async function fetched<T>(load: () => Promise<T>): Promise<T> {
  const until = Date.now() + LONGEST_MS;
  for (;;) {
    try {
      return await load();
    } catch (error) {
      if (Date.now() > until) {
        const said = "A part of this page could not be fetched: the server is away or has been updated.";
        throw new Error(said, { cause: error });
      }
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
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

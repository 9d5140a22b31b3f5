/** What went wrong, in the API's own words, with the id under which its log tells more. */
import type { UseQueryResult } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { ProblemError } from "../api/client";
import type { Problem } from "../api/types";
import { classes, Skeleton } from "./basics";

export function problemIn(error: unknown): Problem {
  if (error instanceof ProblemError) return error.problem;
  const detail = error instanceof Error ? error.message : String(error);
  return { type: "about:blank", title: "Error in the page", status: 0, detail, instance: "", request_id: "" };
}

export function ProblemNote({ error, children }: { error: unknown; children?: ReactNode }) {
  const { title, detail, hint, request_id, status } = problemIn(error);
  return (
    <div role="alert" className="rounded-md border border-bad bg-bad-soft p-3 text-sm">
      <p className="font-semibold text-bad">
        <span aria-hidden="true">✕ </span>
        {title}
        {status > 0 && ` (${status})`}
      </p>
      <p>{detail}</p>
      {hint && <p>{hint}</p>}
      {request_id && (
        <p className="text-xs">
          request <span className="font-mono">{request_id}</span>
        </p>
      )}
      {children}
    </div>
  );
}

interface ShownProps<T> {
  query: UseQueryResult<T>;
  lines?: number;
  height?: string;
  children: (data: T) => ReactNode;
}

/** A query's data; while there is none its skeleton; after an error the last data, dimmed. */
export function Shown<T>({ query, lines = 4, height = "h-5", children }: ShownProps<T>) {
  if (query.data === undefined) {
    return query.isError ? (
      <ProblemNote error={query.error} />
    ) : (
      <Skeleton lines={lines} height={height} />
    );
  }
  return (
    <>
      {query.isError && (
        <div className="mb-3">
          <ProblemNote error={query.error} />
        </div>
      )}
      <div className={classes(query.isError && "opacity-60")}>{children(query.data)}</div>
    </>
  );
}

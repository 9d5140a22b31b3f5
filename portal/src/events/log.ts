/** The event log since a time, read once and then only what is new. */
import { useQuery, useQueryClient, type UseQueryResult } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import { call } from "../api/client";
import type { EventRow, Page } from "../api/types";
import { useLiveStream } from "../live/context";
import { sinceOf, type Range } from "../shell/scope";

export const MOST_ROWS = 20_000;
const PAGE = 200;
const TOPIC = ["events"] as const;

export interface EventLog {
  rows: EventRow[];
  /** There are more events in the range than are kept here. */
  cut: boolean;
}

/** Oldest first. `progress` is how many have come while the first reading goes on. */
export function useEventLog(range: Range): { query: UseQueryResult<EventLog>; progress: number } {
  const [since, setSince] = useState(() => sinceOf(range));
  const [progress, setProgress] = useState(0);
  useEffect(() => setSince(sinceOf(range)), [range]);
  const stream = useLiveStream();
  const client = useQueryClient();
  const key = [...TOPIC, since];
  const query = useQuery<EventLog>({
    queryKey: key,
    queryFn: async ({ signal }) => {
      const rows = [...(client.getQueryData<EventLog>(key)?.rows ?? [])];
      const last = rows.at(-1)?.position;
      let path: string | null | undefined =
        `/events?limit=${PAGE}&since=${since}${last === undefined ? "" : `&after=${last}`}`;
      let reached: number | null = null;
      while (path && rows.length < MOST_ROWS && !signal.aborted) {
        const { data, seq }: { data: Page<EventRow>; seq: number | null } = await call(path);
        reached ??= seq;
        rows.push(...data.items);
        setProgress(rows.length);
        path = data.next;
      }
      stream.arrived(TOPIC, reached);
      return { rows, cut: Boolean(path) };
    },
    structuralSharing: false,
  });
  return { query, progress };
}

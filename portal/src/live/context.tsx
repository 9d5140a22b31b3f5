/** The stream of this tab, and queries that it keeps fresh. */
import {
  keepPreviousData,
  QueryClient,
  useQuery,
  useQueryClient,
  type UseQueryResult,
} from "@tanstack/react-query";
import { createContext, useContext, useSyncExternalStore } from "react";
import { call } from "../api/client";
import { LiveStream, type LiveState } from "./stream";
import type { Topic } from "./topics";

export const queryClient = new QueryClient({
  defaultOptions: {
    queries: {
      networkMode: "always",
      retry: 1,
      retryDelay: 500,
      staleTime: 60_000,
      refetchOnWindowFocus: false,
      placeholderData: keepPreviousData,
    },
  },
});

export const liveStream = new LiveStream(queryClient);

const Live = createContext(liveStream);

export function useLiveStream(): LiveStream {
  return useContext(Live);
}

export function useLive(): LiveState {
  const stream = useLiveStream();
  return useSyncExternalStore(stream.subscribe, stream.get);
}

export interface Watched {
  /** Asked for again this often beside the stream, ms, for what no event tells. */
  every?: number;
  enabled?: boolean;
}

/** A snapshot that is fetched again whenever an event of its topic is heard. */
export function useSnapshot<T>(
  topic: Topic,
  path: string,
  { every, enabled = true }: Watched = {},
): UseQueryResult<T> {
  const stream = useLiveStream();
  return useQuery({
    queryKey: [...topic, path],
    enabled,
    refetchInterval: every ?? false,
    queryFn: async () => {
      const { data, seq } = await call<T>(path);
      stream.arrived(topic, seq);
      return data;
    },
  });
}

export function useRefresh(): (topic: Topic) => Promise<void> {
  const client = useQueryClient();
  return (topic) => client.invalidateQueries({ queryKey: [...topic] });
}

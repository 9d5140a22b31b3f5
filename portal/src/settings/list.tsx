/** A list that is read a page at a time, in all its states. */
import { useInfiniteQuery, type InfiniteData, type UseInfiniteQueryResult } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { call } from "../api/client";
import type { Page } from "../api/types";
import { useLiveStream } from "../live/context";
import type { Topic } from "../live/topics";
import { Button, classes, Skeleton } from "../ui/basics";
import { ProblemNote } from "../ui/problem";

const EVERY_MS = 15_000;

export type List<T> = UseInfiniteQueryResult<InfiniteData<Page<T>>>;

/** Asked for again now and then: of most of what stands in settings no event tells. */
export function useList<T>(topic: Topic, first: string): List<T> {
  const stream = useLiveStream();
  return useInfiniteQuery({
    queryKey: [...topic, first],
    initialPageParam: first,
    refetchInterval: EVERY_MS,
    queryFn: async ({ pageParam }) => {
      const { data, seq } = await call<Page<T>>(pageParam);
      stream.arrived(topic, seq);
      return data;
    },
    getNextPageParam: (page) => page.next ?? undefined,
  });
}

interface Props<T> {
  list: List<T>;
  children: (rows: T[]) => ReactNode;
}

export function Listed<T>({ list, children }: Props<T>) {
  const rows = list.data?.pages.flatMap((page) => page.items);
  return (
    <>
      {list.isError && (
        <div className="mb-3">
          <ProblemNote error={list.error} />
        </div>
      )}
      {rows === undefined && !list.isError && <Skeleton lines={4} height="h-8" />}
      {rows && <div className={classes(list.isError && "opacity-60")}>{children(rows)}</div>}
      {list.hasNextPage && (
        <Button className="mt-3" onClick={() => void list.fetchNextPage()}>
          Load more
        </Button>
      )}
    </>
  );
}

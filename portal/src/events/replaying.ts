/** A range of the log, played again: its events, and how each change stood at any of them. */
import { useQuery, type UseQueryResult } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import { call } from "../api/client";
import type { EventRow, Page, ReplayRow, StepRow } from "../api/types";

export const MOST_CHANGES = 500;
const PAGE = 50;
const WITHIN_MS = 30_000;
/** A silence in the log is played at most this long. */
const LONGEST_WAIT_MS = 2_000;
const SHORTEST_WAIT_MS = 40;

export interface Folded {
  changes: ReplayRow[];
  /** There are more changes in the range than are kept here. */
  cut: boolean;
}

interface Range {
  since: string;
  until: string;
  change: string | undefined;
}

export function useFolded({ since, until, change }: Range): UseQueryResult<Folded> {
  return useQuery<Folded>({
    queryKey: ["replay", since, until, change ?? ""],
    queryFn: async ({ signal }) => {
      const changes: ReplayRow[] = [];
      const asked = new URLSearchParams({ limit: String(PAGE), since, until, ...(change && { change }) });
      let path: string | null | undefined = `/replay?${asked}`;
      while (path && changes.length < MOST_CHANGES && !signal.aborted) {
        const { data }: { data: Page<ReplayRow> } = await call(path, { within: WITHIN_MS });
        changes.push(...data.items);
        path = data.next;
      }
      return { changes, cut: Boolean(path) };
    },
    placeholderData: (_) => undefined,
  });
}

export interface Stood {
  change: ReplayRow;
  step: StepRow;
}

/** How every change stood once the event at `position` had been taken in; those that had begun. */
export function stoodAt(changes: ReplayRow[], position: number): Stood[] {
  return changes.flatMap((change) => {
    const step = change.steps.findLast((one) => one.position <= position);
    return step ? [{ change, step }] : [];
  });
}

export interface Player {
  /** How many events of the range have been played. */
  at: number;
  playing: boolean;
  go: (at: number) => void;
  play: () => void;
  pause: () => void;
}

/** Goes through events at a multiple of the time in which they came. */
export function usePlayer(events: EventRow[], speed: number): Player {
  const [at, setAt] = useState(0);
  const [playing, setPlaying] = useState(false);
  const here = Math.min(at, events.length);
  const over = here >= events.length;
  const wait = waitBefore(events, here, speed);
  useEffect(() => {
    if (!playing) return;
    if (over) {
      setPlaying(false);
      return;
    }
    const next = window.setTimeout(() => setAt(here + 1), wait);
    return () => window.clearTimeout(next);
  }, [playing, over, here, wait]);
  const go = (to: number) => {
    setPlaying(false);
    setAt(Math.min(Math.max(to, 0), events.length));
  };
  const play = () => {
    if (over) setAt(0);
    setPlaying(true);
  };
  return { at: here, playing, go, play, pause: () => setPlaying(false) };
}

function waitBefore(events: EventRow[], index: number, speed: number): number {
  const [last, next] = [events[index - 1], events[index]];
  if (!last || !next) return SHORTEST_WAIT_MS;
  const apart = (Date.parse(next.at) - Date.parse(last.at)) / speed;
  return Math.min(Math.max(apart, SHORTEST_WAIT_MS), LONGEST_WAIT_MS);
}

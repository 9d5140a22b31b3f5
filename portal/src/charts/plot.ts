/** What our own drawings share: how wide they may be, and the ticks of a time axis. */
import { useEffect, useRef, useState, type RefObject } from "react";
import { clock } from "../format";

/** A box, and how wide it is, px; 0 until that is known. */
export function useWidth(): [RefObject<HTMLDivElement | null>, number] {
  const box = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(0);
  useEffect(() => {
    if (box.current === null) return;
    const watching = new ResizeObserver(([entry]) => setWidth(Math.floor(entry?.contentRect.width ?? 0)));
    watching.observe(box.current);
    return () => watching.disconnect();
  }, []);
  return [box, width];
}

const MINUTE_MS = 60_000;
const DAY_MS = 1_440 * MINUTE_MS;
const STEPS_MS = [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1_440].map((minutes) => minutes * MINUTE_MS);
const TICK_PX = 64;

/** Round times of day between two times, as many as have room. */
export function ticks(since: number, until: number, width: number): { at: number; name: string }[] {
  const room = Math.max(1, Math.floor(width / TICK_PX));
  const step = STEPS_MS.find((one) => (until - since) / one <= room) ?? DAY_MS;
  const zone = new Date(since).getTimezoneOffset() * MINUTE_MS;
  const found = [];
  for (let at = Math.ceil((since - zone) / step) * step + zone; at <= until; at += step) {
    const name = step < DAY_MS ? clock(at).slice(0, 5) : new Date(at).toLocaleDateString("en-GB", { day: "numeric", month: "short" });
    found.push({ at, name });
  }
  return found;
}

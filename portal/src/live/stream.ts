/**
 * The live stream: one WebSocket that resumes exactly where it was cut.
 *
 * What an event touches is fetched again. An event can arrive before the database has it, so a
 * snapshot counts only when its `X-Event-Seq` has reached the event; until then it is asked again.
 */
import type { QueryClient } from "@tanstack/react-query";
import { call } from "../api/client";
import { session } from "../api/session";
import type { Switch, Ticket } from "../api/types";
import { topicsOf, type CloudEvent, type Topic } from "./topics";

export type Status = "connecting" | "live" | "reconnecting" | "disconnected";

export interface LiveState {
  status: Status;
  /** When the pages were last known to be current, ms. */
  asOf: number | null;
  /** How often events were lost to the stream, so that all was fetched again. */
  gaps: number;
  /** How often the socket was opened again. */
  resumed: number;
}

interface Frame {
  kind: "hello" | "event" | "gap" | "ping";
  seq?: number;
  prev?: number;
  from?: number;
  to?: number;
  head?: number;
  stream_epoch?: string;
}

const QUIET_MS = 1_500;
const PROBE_MS = 1_000;
const GIVEN_UP_MS = 2_000;
const REPAINT_MS = 1_000;
const BACKOFF_MS = [250, 500, 1_000, 2_000, 4_000];
const KEPT_IDS = 500;

export class LiveStream {
  private state: LiveState = { status: "connecting", asOf: null, gaps: 0, resumed: 0 };
  private listeners = new Set<() => void>();
  private socket: WebSocket | null = null;
  private running = false;
  private tries = 0;
  private opened = 0;
  private retry: number | undefined;
  private watch: number | undefined;
  private lostAt: number | null = null;
  private heardAt = 0;
  private probing = false;
  private seq: number | null = null;
  private epoch: string | null = null;
  private floor = 0;
  private needed = new Map<string, number>();
  private due = new Map<string, { again: boolean; timer: number }>();
  private recent: string[] = [];
  private waiting = new Map<string, () => void>();

  constructor(private readonly queries: QueryClient) {}

  get = (): LiveState => this.state;

  subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  start(): void {
    if (this.running) return;
    this.running = true;
    this.put({ status: "connecting" });
    this.lostAt = Date.now();
    this.watch = window.setInterval(() => this.look(), 500);
    window.addEventListener("offline", this.dropped);
    window.addEventListener("online", this.now);
    void this.connect();
  }

  stop(): void {
    this.running = false;
    window.clearInterval(this.watch);
    window.clearTimeout(this.retry);
    window.removeEventListener("offline", this.dropped);
    window.removeEventListener("online", this.now);
    for (const { timer } of this.due.values()) window.clearTimeout(timer);
    this.due.clear();
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  }

  /** Whether an event with this id is heard within `ms`. */
  heard(eventId: string, ms: number): Promise<boolean> {
    if (this.recent.includes(eventId)) return Promise.resolve(true);
    return new Promise((resolve) => {
      const late = window.setTimeout(() => {
        this.waiting.delete(eventId);
        resolve(false);
      }, ms);
      this.waiting.set(eventId, () => {
        window.clearTimeout(late);
        resolve(true);
      });
    });
  }

  /** Told of every snapshot: asks again for one that is older than what has been heard of it. */
  arrived(topic: Topic, seq: number | null): void {
    if (seq === null) return;
    const wanted = Math.max(this.floor, this.needed.get(topic.join("/")) ?? 0);
    if (seq < wanted) this.refetch(topic, 400);
  }

  private async connect(): Promise<void> {
    window.clearTimeout(this.retry);
    if (!this.running || this.socket !== null) return;
    try {
      if (this.seq === null) {
        this.seq = (await call<Switch>("/switch")).seq;
        this.floor = this.seq ?? 0;
      }
      const { data } = await call<Ticket>("/stream/ticket", { method: "POST" });
      if (this.running) this.open(data.ticket);
    } catch {
      this.lost();
    }
  }

  private open(ticket: string): void {
    const address = new URL("/api/v1/stream", window.location.href);
    address.protocol = address.protocol.replace("http", "ws");
    address.searchParams.set("after", String(this.seq ?? 0));
    const socket = new WebSocket(address, ["optiinfra.v1", `ticket.${ticket}`]);
    this.socket = socket;
    socket.onmessage = (message) => {
      for (const line of (message.data as string).split("\n")) this.take(JSON.parse(line) as Frame);
    };
    socket.onclose = () => {
      if (this.socket !== socket) return;
      this.socket = null;
      this.lost();
    };
  }

  private take(frame: Frame): void {
    this.heardAt = Date.now();
    if (frame.kind === "hello") this.hello(frame);
    else if (frame.kind === "gap") this.gap(frame);
    else if (frame.kind === "event") this.event(frame);
  }

  private hello(frame: Frame): void {
    const another = this.epoch !== null && this.epoch !== frame.stream_epoch;
    this.epoch = frame.stream_epoch ?? null;
    this.tries = 0;
    this.lostAt = null;
    this.opened += 1;
    if (another) this.all(frame.head ?? 0, true);
    this.put({ status: "live", asOf: Date.now(), resumed: this.opened - 1 });
    void this.queries.refetchQueries({ predicate: (query) => query.state.status === "error" });
  }

  /** What lies between cannot be had: fetch all snapshots again. */
  private gap(frame: Frame): void {
    const { from = 0, to = 0 } = frame;
    this.seq = to === this.seq ? from - 1 : to;
    this.all(this.seq, true);
  }

  private event(frame: Frame): void {
    const { seq = 0, prev = 0 } = frame;
    if (this.seq !== null && prev !== this.seq) this.all(seq, true);
    this.seq = seq;
    const event = frame as unknown as CloudEvent;
    this.recent = [...this.recent.slice(-KEPT_IDS), event.id];
    this.waiting.get(event.id)?.();
    this.waiting.delete(event.id);
    for (const topic of topicsOf(event)) {
      this.needed.set(topic.join("/"), seq);
      this.refetch(topic, REPAINT_MS / 4);
    }
  }

  private all(floor: number, isGap: boolean): void {
    this.needed.clear();
    this.floor = floor;
    if (isGap) this.put({ gaps: this.state.gaps + 1 });
    void this.queries.invalidateQueries();
  }

  /** At most once a second for each topic, and soon after the first event. */
  private refetch(topic: Topic, ms: number): void {
    const name = topic.join("/");
    const known = this.due.get(name);
    if (known !== undefined) {
      known.again = true;
      return;
    }
    const due = { again: false, timer: 0 };
    const rested = () => {
      this.due.delete(name);
      if (due.again) this.refetch(topic, 0);
    };
    due.timer = window.setTimeout(() => {
      due.again = false;
      void this.queries.invalidateQueries({ queryKey: [...topic] });
      due.timer = window.setTimeout(rested, REPAINT_MS - ms);
    }, ms);
    this.due.set(name, due);
  }

  private dropped = (): void => {
    const socket = this.socket;
    this.socket = null;
    socket?.close();
    this.lost();
  };

  private now = (): void => {
    this.tries = 0;
    void this.connect();
  };

  private lost(): void {
    if (!this.running || session.get() === null) return;
    this.lostAt ??= Date.now();
    if (this.state.status === "live") this.put({ status: "reconnecting" });
    const wait = BACKOFF_MS[Math.min(this.tries, BACKOFF_MS.length - 1)] ?? 4_000;
    this.tries += 1;
    window.clearTimeout(this.retry);
    this.retry = window.setTimeout(() => void this.connect(), wait);
  }

  /** Says "disconnected" in time, and asks for a sign of life when the socket is silent. */
  private look(): void {
    const now = Date.now();
    if (this.lostAt !== null) {
      const over = now - this.lostAt > GIVEN_UP_MS;
      if (over && this.state.status !== "disconnected") this.put({ status: "disconnected" });
      return;
    }
    if (now - this.heardAt < QUIET_MS) {
      if (now - (this.state.asOf ?? 0) > REPAINT_MS) this.put({ asOf: this.heardAt });
    } else if (!this.probing && !document.hidden) {
      void this.probe();
    }
  }

  private async probe(): Promise<void> {
    this.probing = true;
    try {
      const answer = await fetch("/healthz", {
        signal: AbortSignal.timeout(PROBE_MS),
        cache: "no-store",
      });
      if (!answer.ok) throw new Error("not healthy");
      this.heardAt = Date.now();
    } catch {
      this.dropped();
    } finally {
      this.probing = false;
    }
  }

  private put(change: Partial<LiveState>): void {
    this.state = { ...this.state, ...change };
    for (const listener of this.listeners) listener();
  }
}

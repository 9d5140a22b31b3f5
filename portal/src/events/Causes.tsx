/** The tree of an event: what caused it, above it, and all that it led to, below. */
import { useEffect, useRef, type KeyboardEvent } from "react";
import type { Causes as Found, RelatedRow } from "../api/types";
import { clock, count } from "../format";
import { useSnapshot } from "../live/context";
import { classes } from "../ui/basics";
import { Shown } from "../ui/problem";
import { summaryOf } from "./words";

const STEP_REM = 0.75;
const DEEPEST_STEP = 8;

interface Node {
  row: RelatedRow;
  /** How far it is moved in: only where an event led to more than one. */
  level: number;
}

/** Causes first, then the event, then what it led to, each below what caused it. */
export function nodesOf(items: RelatedRow[]): Node[] {
  const led = new Map<string, RelatedRow[]>();
  for (const row of items) {
    if (row.depth > 0 && row.causation) led.set(row.causation, [...(led.get(row.causation) ?? []), row]);
  }
  const found: Node[] = items
    .filter((row) => row.depth <= 0)
    .map((row) => ({ row, level: 0 }));
  const middle = found.at(-1);
  const left: Node[] = middle ? below(middle) : [];
  function below({ row, level }: Node): Node[] {
    const next = led.get(row.id) ?? [];
    return next.map((one) => ({ row: one, level: next.length > 1 ? level + 1 : level })).reverse();
  }
  for (let node = left.pop(); node; node = left.pop()) {
    found.push(node);
    left.push(...below(node));
  }
  return found;
}

/** Arrows move within the tree: up and down by row, left to the cause, right to the first effect. */
function moved(event: KeyboardEvent<HTMLElement>, nodes: Node[]): void {
  const here = nodes.findIndex(({ row }) => row.id === (event.target as HTMLElement).dataset["node"]);
  const at = nodes[here]?.row;
  if (!at) return;
  const target = {
    ArrowUp: here - 1,
    ArrowDown: here + 1,
    ArrowLeft: nodes.findIndex(({ row }) => row.id === at.causation),
    ArrowRight: nodes.findIndex(({ row }) => row.causation === at.id),
  }[event.key];
  const next = target === undefined ? undefined : nodes[target]?.row.id;
  if (!next) return;
  event.preventDefault();
  event.currentTarget.querySelector<HTMLElement>(`[data-node="${CSS.escape(next)}"]`)?.focus();
}

interface Props {
  id: string;
  onChoose: (id: string) => void;
}

export function useCauses(id: string) {
  return useSnapshot<Found>(["events", "causes", id], `/events/${encodeURIComponent(id)}/causes`);
}

export function Causes({ id, onChoose }: Props) {
  const query = useCauses(id);
  return (
    <section>
      <h3 className="mb-1 text-xs font-semibold tracking-wide text-muted uppercase">
        Causes and effects
      </h3>
      <Shown query={query} lines={6}>
        {(found) => <Tree found={found} id={id} onChoose={onChoose} />}
      </Shown>
    </section>
  );
}

function Tree({ found, id, onChoose }: Props & { found: Found }) {
  const nodes = nodesOf(found.items);
  const causes = nodes.filter(({ row }) => row.depth < 0).length;
  const effects = nodes.length - causes - 1;
  const first = nodes[0]?.row;
  const box = useRef<HTMLOListElement>(null);
  useEffect(() => {
    const here = box.current?.querySelector<HTMLElement>("[aria-current]");
    if (box.current && here) box.current.scrollTop = here.offsetTop - box.current.clientHeight / 3;
  }, [id, found]);
  return (
    <>
      <p className="mb-2 text-muted">{above(found, first, causes)}</p>
      <ol
        ref={box}
        aria-label="causes and effects"
        className="relative max-h-96 space-y-0.5 overflow-y-auto rounded-md border border-line p-1"
        onKeyDown={(event) => moved(event, nodes)}
      >
        {nodes.map(({ row, level }) => (
          <li
            key={row.id}
            aria-level={row.depth + causes + 1}
            style={{ paddingLeft: `${Math.min(level, DEEPEST_STEP) * STEP_REM}rem` }}
          >
            <button
              type="button"
              data-node={row.id}
              aria-current={row.id === id ? "true" : undefined}
              onClick={() => onChoose(row.id)}
              className={classes(
                "flex w-full gap-2 rounded-md px-2 py-1 text-left hover:bg-raised",
                row.id === id && "bg-accent-soft font-semibold",
              )}
            >
              <span className="font-mono text-xs leading-5 text-muted">{clock(row.at)}</span>
              <span className="min-w-0 break-words">
                {summaryOf(row.kind, row.fact)}{" "}
                <span className="font-mono text-xs font-normal text-muted">{row.kind}</span>
              </span>
            </button>
          </li>
        ))}
      </ol>
      <p className="mt-2 text-muted">
        {effects === 0 ? "It led to nothing, so far." : `It led to ${events(effects)}.`}
        {found.effects_cut && " There may be more, further on in the log."}
      </p>
    </>
  );
}

function above(found: Found, first: RelatedRow | undefined, causes: number): string {
  if (found.causes_cut) return `The nearest ${count(causes)} of its causes; there are more before them.`;
  if (first?.causation) return "What caused the first of these is not in the log.";
  if (causes === 0) return "Nothing caused it: it began here.";
  return causes === 1 ? "What caused it stands above it." : `${count(causes)} causes, the first on top.`;
}

function events(number: number): string {
  return number === 1 ? "1 event" : `${count(number)} events`;
}

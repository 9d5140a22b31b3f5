/** Changes under way and done: a list, and the chosen one with its stages, gates and history. */
import { Link, useNavigate, useSearch } from "@tanstack/react-router";
import { useState } from "react";
import type { ChangeDetail, ChangeRow, Page } from "../api/types";
import { percent, words } from "../format";
import { Controls } from "../execution/Controls";
import { Evidence } from "../execution/Evidence";
import { History } from "../execution/History";
import { PostMortem } from "../execution/PostMortem";
import { Stages } from "../execution/Stages";
import { useSnapshot } from "../live/context";
import { keptScope } from "../shell/keys";
import { useScope } from "../shell/scope";
import { Ago, Badge, Button, classes, Code, Empty, Panel } from "../ui/basics";
import { Shown } from "../ui/problem";
import { RiskBadge, StateBadge, TERMINAL } from "../ui/states";

const VIEWS = ["running", "over", "all"] as const;
type View = (typeof VIEWS)[number];

/** Whether it has been, or is being, carried out. */
function begun(row: ChangeRow): boolean {
  return row.step !== null || ["approved", "executing", "rolling_back"].includes(row.state);
}

function fits(row: ChangeRow, view: View): boolean {
  if (view === "all") return true;
  return begun(row) && TERMINAL.has(row.state) === (view === "over");
}

export function Executions() {
  const { deployment } = useScope();
  const { tab, id } = useSearch({ from: "/executions" });
  const view = VIEWS.find((one) => one === tab) ?? "all";
  const [find, setFind] = useState("");
  const path = `/changes?limit=200${deployment && `&deployment=${deployment}`}`;
  const query = useSnapshot<Page<ChangeRow>>(["changes"], path);
  return (
    <div className="grid items-start gap-4 lg:grid-cols-[minmax(18rem,24rem)_1fr]">
      <div className={classes(id && "hidden lg:block", "min-w-0")}>
        <Views view={view} rows={query.data?.items} />
        <input
          data-search=""
          type="search"
          aria-label="search titles"
          placeholder="Search titles ( / )"
          value={find}
          onChange={(event) => setFind(event.target.value)}
          className="my-3 w-full rounded-md border border-line bg-panel px-3 py-1.5 placeholder:text-muted"
        />
        <Shown query={query} lines={4} height="h-16">
          {({ items, next }) => {
            const shown = items.filter(
              (row) => fits(row, view) && row.title.toLowerCase().includes(find.toLowerCase()),
            );
            return (
              <>
                {shown.length === 0 && <Nothing view={view} />}
                <ul className="space-y-2">
                  {shown.map((row) => (
                    <Row key={row.id} row={row} chosen={row.id === id} />
                  ))}
                </ul>
                {next && <p className="mt-2 text-muted">The latest 200 are shown.</p>}
              </>
            );
          }}
        </Shown>
      </div>
      <div className="min-w-0">{id && <Chosen key={id} id={id} />}</div>
    </div>
  );
}

function Views({ view, rows }: { view: View; rows: ChangeRow[] | undefined }) {
  const navigate = useNavigate({ from: "/executions" });
  return (
    <div role="group" aria-label="which" className="flex flex-wrap gap-1">
      {VIEWS.map((name) => (
        <button
          key={name}
          type="button"
          aria-pressed={name === view}
          onClick={() => void navigate({ search: (before) => ({ ...before, tab: name }) })}
          className={classes(
            "rounded-md px-2 py-1 text-sm",
            name === view ? "bg-accent-soft font-semibold text-accent" : "text-muted hover:bg-raised",
          )}
        >
          {name}{" "}
          <span className="text-xs">{rows?.filter((row) => fits(row, name)).length ?? "–"}</span>
        </button>
      ))}
    </div>
  );
}

/** Where a change stands within its rollout, in a few words. */
export function standing({ step, phase, paused_by }: ChangeRow): string | null {
  if (paused_by) return `paused by ${paused_by}`;
  if (!step) return null;
  const where = step.kind === "apply" ? `stage ${step.stage + 1}, ${percent(step.share)}` : words(step.kind);
  return phase ? `${where}: ${words(phase)}` : where;
}

function Row({ row, chosen }: { row: ChangeRow; chosen: boolean }) {
  const now = TERMINAL.has(row.state) ? null : standing(row);
  return (
    <li>
      <Link
        to="/executions"
        search={(before) => ({ ...before, id: row.id })}
        data-row={chosen ? "chosen" : ""}
        aria-current={chosen ? "true" : undefined}
        className={classes(
          "block rounded-lg border bg-panel p-3 hover:bg-raised",
          chosen ? "border-accent" : "border-line",
        )}
      >
        <span className="block font-medium">{row.title}</span>
        <span className="mt-1 flex flex-wrap items-center gap-2 text-xs text-muted">
          <StateBadge state={row.state} />
          {now && <span>{now}</span>}
          <span>{row.deployment ?? "–"}</span>
          <Ago at={row.updated_at} />
        </span>
      </Link>
    </li>
  );
}

function Nothing({ view }: { view: View }) {
  return (
    <Empty
      why={view === "running" ? "Nothing is being carried out." : "No change is known here yet."}
      next={
        <>
          Approve a{" "}
          <Link to="/recommendations" search={keptScope} className="text-accent underline">
            recommendation
          </Link>
          , or let the policy do it. Without <Code>mode: act</Code> in the fleet file nothing is
          carried out.
        </>
      }
    />
  );
}

function Chosen({ id }: { id: string }) {
  const query = useSnapshot<ChangeDetail>(["change", id], `/changes/${id}`);
  const navigate = useNavigate({ from: "/executions" });
  const close = () => void navigate({ search: ({ id: _, ...rest }) => rest });
  return (
    <Shown query={query} lines={6} height="h-24">
      {(change) => (
        <article aria-label="execution" className="space-y-4">
          <Head change={change} onClose={close} />
          <PostMortem change={change} />
          <Panel title="Stages and gates">
            <Stages change={change} />
          </Panel>
          <Evidence change={change} />
          <Panel title="History">
            <History change={change} />
          </Panel>
        </article>
      )}
    </Shown>
  );
}

function Head({ change, onClose }: { change: ChangeDetail; onClose: () => void }) {
  const now = TERMINAL.has(change.state) ? null : standing(change);
  return (
    <div className="space-y-3 rounded-lg border border-line bg-panel p-4">
      <div className="flex items-start justify-between gap-2">
        <h2 className="text-lg font-semibold">{change.title}</h2>
        <Button look="quiet" data-action="close" onClick={onClose}>
          Close
        </Button>
      </div>
      <p className="flex flex-wrap items-center gap-2 text-muted">
        <StateBadge state={change.state} />
        <RiskBadge risk={change.risk} />
        {change.paused_by && <Badge tone="warn">paused</Badge>}
        {now && <strong className="text-ink">{now}</strong>}
        <span>on {change.deployment ?? "–"}</span>
        <span>
          moved <Ago at={change.updated_at} />
        </span>
      </p>
      {change.waiting && <p>Waits: {change.waiting}</p>}
      <Controls change={change} />
      <Link
        to="/recommendations"
        search={(before) => ({ ...keptScope(before), id: change.id })}
        className="text-accent underline"
      >
        The recommendation behind it
      </Link>
    </div>
  );
}

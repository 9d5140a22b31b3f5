/** Figures on a page: a tile, and which deployment a page is about. */
import { useNavigate } from "@tanstack/react-router";
import type { ReactNode } from "react";
import type { Measured } from "../api/figures";
import type { DeploymentRow, Page } from "../api/types";
import { measured, UNKNOWN } from "../format";
import { useSnapshot } from "../live/context";
import { useScope } from "../shell/scope";
import { Code, Empty } from "./basics";
import { Shown } from "./problem";

interface TileProps {
  name: string;
  value: string;
  /** Beside the value. */
  mark?: ReactNode;
  children?: ReactNode;
}

export function Tile({ name, value, mark, children }: TileProps) {
  return (
    <div className="min-w-0 rounded-lg border border-line bg-panel p-3">
      <p className="text-xs text-muted">{name}</p>
      <p className="text-lg font-semibold break-words md:text-xl">
        {value}
        {mark}
      </p>
      {children && <p className="text-xs text-muted">{children}</p>}
    </div>
  );
}

/** A figure with when it was read, or why it is not known. */
export function FigureTile({ name, of, about, mark }: { name: string; of: Measured; about?: string; mark?: ReactNode }) {
  return (
    <Tile name={name} value={measured(of.value, of.unit)} mark={of.value !== null && mark}>
      {of.value === null ? (of.reason ?? UNKNOWN) : about}
    </Tile>
  );
}

/** Shows a page of one deployment: the one of the scope bar, or the first there is. */
export function OfDeployment({ children }: { children: (deployment: string) => ReactNode }) {
  const { deployment } = useScope();
  const navigate = useNavigate();
  const query = useSnapshot<Page<DeploymentRow>>(["deployments"], "/deployments?limit=200");
  return (
    <Shown query={query} lines={3} height="h-40">
      {({ items }) => {
        const first = items[0];
        if (!first) {
          return <Empty why="No deployment is declared." next={<>Name one in the fleet file: <Code>deployments</Code>.</>} />;
        }
        const shown = deployment || first.id;
        return (
          <>
            {deployment === "" && items.length > 1 && (
              <div role="group" aria-label="deployment" className="mb-3 flex flex-wrap items-center gap-1">
                {items.map(({ id }) => (
                  <button
                    key={id}
                    type="button"
                    aria-pressed={id === shown}
                    onClick={() => void navigate({ to: ".", search: (before) => ({ ...before, deployment: id }) })}
                    className={`rounded-md px-2 py-1 text-sm ${id === shown ? "bg-accent-soft font-semibold text-accent" : "text-muted hover:bg-raised"}`}
                  >
                    {id}
                  </button>
                ))}
              </div>
            )}
            {children(shown)}
          </>
        );
      }}
    </Shown>
  );
}

/** Since when and at which deployment to look, connection, theme and who is signed in. */
import { useNavigate, useRouterState } from "@tanstack/react-router";
import { useState } from "react";
import { call } from "../api/client";
import { session, type SignedIn } from "../api/session";
import type { OverviewFigures } from "../api/figures";
import type { DeploymentRow, Page } from "../api/types";
import { useSnapshot } from "../live/context";
import { Button } from "../ui/basics";
import { Simulated } from "../ui/simulated";
import { Connection } from "./Connection";
import { PAGES } from "./pages";
import { RANGE_NAMES, RANGES, useScope, type Range } from "./scope";
import { chooseTheme, chosenTheme, type Theme } from "./theme";

const EMULATED_EVERY_MS = 60_000;
const FIELD = "min-h-8 rounded-md border border-line bg-panel px-2 py-1 text-sm text-ink";

export function ScopeBar({ who, showHelp }: { who: SignedIn; showHelp: () => void }) {
  const { range, deployment } = useScope();
  const navigate = useNavigate();
  const path = useRouterState({ select: (state) => state.location.pathname });
  const deployments = useSnapshot<Page<DeploymentRow>>(["deployments"], "/deployments?limit=200");
  const page = PAGES.find(({ to }) => to === path);
  const ranged = page?.ranged ?? false;
  const measured = page?.measured ?? false;
  const figures = useSnapshot<OverviewFigures>(["deployments"], "/overview", { every: EMULATED_EVERY_MS, enabled: measured });
  const names = new Set(deployments.data?.items.map((row) => row.deployment.id));
  if (deployment) names.add(deployment);
  const choose = (change: { range?: Range; deployment?: string }) =>
    void navigate({ to: ".", search: (before) => ({ ...before, ...change }) });
  return (
    <div className="flex flex-wrap items-center gap-x-3 gap-y-2 border-b border-line bg-panel px-4 py-2">
      <select
        aria-label="deployment"
        className={FIELD}
        value={deployment}
        onChange={(event) => choose({ deployment: event.target.value })}
      >
        <option value="">all deployments</option>
        {[...names].map((name) => (
          <option key={name}>{name}</option>
        ))}
      </select>
      {ranged && (
        <select
          aria-label="time range"
          className={FIELD}
          value={range}
          onChange={(event) => choose({ range: event.target.value as Range })}
        >
          {RANGES.map((one) => (
            <option key={one} value={one}>
              {RANGE_NAMES[one]}
            </option>
          ))}
        </select>
      )}
      <Connection />
      {measured && <Simulated of={deployment ? [deployment] : [...names]} among={figures.data?.simulated} />}
      <div className="ml-auto flex items-center gap-2">
        <ThemeChoice />
        <Button look="quiet" onClick={showHelp} aria-label="keyboard help" title="keyboard help">
          ?
        </Button>
        <span className="hidden text-xs text-muted md:inline">
          {who.name} · {who.role}
        </span>
        <Button look="quiet" onClick={() => void signOut()}>
          Sign out
        </Button>
      </div>
    </div>
  );
}

function ThemeChoice() {
  const [theme, setTheme] = useState<Theme>(chosenTheme);
  return (
    <select
      aria-label="theme"
      className={FIELD}
      value={theme}
      onChange={(event) => {
        const chosen = event.target.value as Theme;
        chooseTheme(chosen);
        setTheme(chosen);
      }}
    >
      <option value="system">system</option>
      <option value="light">light</option>
      <option value="dark">dark</option>
    </select>
  );
}

async function signOut(): Promise<void> {
  try {
    await call("/session", { method: "DELETE" });
  } finally {
    session.end(null);
  }
}

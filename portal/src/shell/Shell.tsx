/** What stands around every page: navigation, scope, and the stream while somebody is signed in. */
import { Link, Outlet, useNavigate, useRouterState } from "@tanstack/react-router";
import { useCallback, useEffect, useRef, useState } from "react";
import type { SignedIn } from "../api/session";
import { queryClient, useLiveStream } from "../live/context";
import { Empty } from "../ui/basics";
import { Help } from "./Help";
import { keptScope, useKeys } from "./keys";
import { PAGES } from "./pages";
import { ScopeBar } from "./ScopeBar";
import { useSession } from "./session";

export function Shell() {
  const who = useSession();
  const path = useRouterState({ select: (state) => state.location.pathname });
  const navigate = useNavigate();
  const signingIn = path === "/sign-in";
  useEffect(() => {
    if (who === null && !signingIn) void navigate({ to: "/sign-in", replace: true });
    if (who !== null && signingIn) void navigate({ to: "/", replace: true });
  }, [who, signingIn, navigate]);
  if (who === null || signingIn) return signingIn ? <Outlet /> : null;
  return <SignedInShell who={who} path={path} />;
}

function SignedInShell({ who, path }: { who: SignedIn; path: string }) {
  const stream = useLiveStream();
  const [helping, setHelping] = useState(false);
  const showHelp = useCallback(() => setHelping(true), []);
  useKeys(showHelp);
  useEffect(() => {
    stream.start();
    return () => stream.stop();
  }, [stream, who]);
  useEffect(() => () => queryClient.clear(), [who]);
  const name = PAGES.find((page) => page.to === path)?.name;
  useEffect(() => {
    document.title = name ? `${name} · OptiInfra` : "OptiInfra";
  }, [name]);
  return (
    <div className="flex h-full flex-col md:flex-row">
      <a
        href="#main"
        className="sr-only focus:not-sr-only focus:absolute focus:z-10 focus:bg-panel focus:p-2"
      >
        Skip to the page
      </a>
      <Navigation path={path} />
      <div className="flex min-h-0 min-w-0 flex-1 flex-col">
        <ScopeBar who={who} showHelp={showHelp} />
        <main id="main" tabIndex={-1} className="min-h-0 flex-1 overflow-y-auto p-4 outline-none">
          {name && <h1 className="mb-3 text-xl font-semibold">{name}</h1>}
          <Outlet />
        </main>
      </div>
      {helping && <Help onClose={() => setHelping(false)} />}
    </div>
  );
}

function Navigation({ path }: { path: string }) {
  const bar = useRef<HTMLElement>(null);
  useEffect(() => {
    // Where the screen is narrow the bar scrolls, and where one is may lie beyond its end.
    bar.current?.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  }, [path]);
  return (
    <nav
      ref={bar}
      aria-label="pages"
      className="flex shrink-0 items-center gap-1 overflow-x-auto border-b border-line bg-panel p-2 md:w-56 md:flex-col md:items-stretch md:border-r md:border-b-0 md:p-3"
    >
      <span className="hidden px-2 pb-3 text-base font-bold md:block">OptiInfra</span>
      {PAGES.map(({ to, name, letter }) => (
        <Link
          key={to}
          to={to}
          search={keptScope}
          aria-current={path === to ? "page" : undefined}
          className={`flex items-center justify-between gap-3 rounded-md px-2 py-1.5 whitespace-nowrap ${
            path === to ? "bg-accent-soft font-semibold text-accent" : "text-ink hover:bg-raised"
          }`}
        >
          {name}
          <kbd aria-hidden="true" className="hidden font-mono text-xs font-normal text-muted md:inline">
            g {letter}
          </kbd>
        </Link>
      ))}
    </nav>
  );
}

export function NotFound() {
  return (
    <Empty
      why="There is no such page."
      next={
        <Link to="/" className="text-accent underline">
          Go to the overview
        </Link>
      }
    />
  );
}

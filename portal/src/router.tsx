/** The addresses of the pages. What is looked at stands in the address, so that it can be sent. */
import {
  createRootRoute,
  createRoute,
  createRouter,
  lazyRouteComponent,
} from "@tanstack/react-router";
import { NotFound, Shell } from "./shell/Shell";
import { RANGES, type Range } from "./shell/scope";
import { Skeleton } from "./ui/basics";
import { Broken, fetched } from "./ui/fetched";

export interface Scope {
  range?: Range;
  deployment?: string;
}

function text(value: unknown): string | undefined {
  return typeof value === "string" && value !== "" ? value : undefined;
}

function scopeIn(search: Record<string, unknown>): Scope {
  const range = RANGES.find((one) => one === search["range"]);
  const deployment = text(search["deployment"]);
  return { ...(range && { range }), ...(deployment && { deployment }) };
}

const root = createRootRoute({
  component: Shell,
  notFoundComponent: NotFound,
  validateSearch: scopeIn,
});

function chosenIn(search: Record<string, unknown>): { tab?: string; id?: string } {
  const tab = text(search["tab"]);
  const id = text(search["id"]);
  return { ...(tab && { tab }), ...(id && { id }) };
}

export const EVENT_VIEWS = ["audit", "replay", "what-if"] as const;

export interface EventSearch {
  kind?: string;
  change?: string;
  find?: string;
  event?: string;
  view?: (typeof EVENT_VIEWS)[number];
}

function eventsIn(search: Record<string, unknown>): EventSearch {
  const found: EventSearch = {};
  for (const name of ["kind", "change", "find", "event"] as const) {
    const given = text(search[name]);
    if (given) found[name] = given;
  }
  const view = EVENT_VIEWS.find((one) => one === search["view"]);
  if (view) found.view = view;
  return found;
}

const SETTINGS = ["people", "keys", "policy", "notifications"] as const;
export type Setting = (typeof SETTINGS)[number];

function settingIn(search: Record<string, unknown>): { view?: Setting } {
  const view = SETTINGS.find((one) => one === search["view"]);
  return view ? { view } : {};
}

const signIn = createRoute({
  getParentRoute: () => root,
  path: "/sign-in",
  component: lazyRouteComponent(() => fetched(() => import("./pages/SignIn")), "SignIn"),
});
const overview = createRoute({
  getParentRoute: () => root,
  path: "/",
  component: lazyRouteComponent(() => fetched(() => import("./pages/Overview")), "Overview"),
});
const cost = createRoute({
  getParentRoute: () => root,
  path: "/cost",
  component: lazyRouteComponent(() => fetched(() => import("./pages/Cost")), "Cost"),
});
const performance = createRoute({
  getParentRoute: () => root,
  path: "/performance",
  component: lazyRouteComponent(() => fetched(() => import("./pages/Performance")), "Performance"),
});
const resources = createRoute({
  getParentRoute: () => root,
  path: "/resources",
  component: lazyRouteComponent(() => fetched(() => import("./pages/Resources")), "Resources"),
});
const application = createRoute({
  getParentRoute: () => root,
  path: "/application",
  component: lazyRouteComponent(() => fetched(() => import("./pages/Application")), "Application"),
});
const recommendations = createRoute({
  getParentRoute: () => root,
  path: "/recommendations",
  validateSearch: chosenIn,
  component: lazyRouteComponent(() => fetched(() => import("./pages/Recommendations")), "Recommendations"),
});
const executions = createRoute({
  getParentRoute: () => root,
  path: "/executions",
  validateSearch: chosenIn,
  component: lazyRouteComponent(() => fetched(() => import("./pages/Executions")), "Executions"),
});
const events = createRoute({
  getParentRoute: () => root,
  path: "/events",
  validateSearch: eventsIn,
  component: lazyRouteComponent(() => fetched(() => import("./pages/Events")), "Events"),
});
const settings = createRoute({
  getParentRoute: () => root,
  path: "/settings",
  validateSearch: settingIn,
  component: lazyRouteComponent(() => fetched(() => import("./pages/Settings")), "Settings"),
});

export const router = createRouter({
  routeTree: root.addChildren([
    signIn,
    overview,
    cost,
    performance,
    resources,
    application,
    recommendations,
    executions,
    events,
    settings,
  ]),
  defaultPreload: "intent",
  defaultPendingComponent: Skeleton,
  defaultErrorComponent: Broken,
});

declare module "@tanstack/react-router" {
  interface Register {
    router: typeof router;
  }
}

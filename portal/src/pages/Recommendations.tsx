/** What is proposed: tabs by state, a list by expected value, and the card of the chosen one. */
import { useInfiniteQuery } from "@tanstack/react-query";
import { Link, useNavigate, useSearch } from "@tanstack/react-router";
import { useState } from "react";
import { call } from "../api/client";
import type { Page, RecommendationRow } from "../api/types";
import { dayAndClock, savingRange } from "../format";
import { useLiveStream } from "../live/context";
import { Card } from "../recommendation/Card";
import { isAsleep, sorted, tabOf, TABS, type Tab } from "../recommendation/order";
import { useScope } from "../shell/scope";
import { Ago, Badge, Button, classes, Code, Empty, Skeleton, useNow } from "../ui/basics";
import { ProblemNote } from "../ui/problem";
import { RiskBadge, StateBadge } from "../ui/states";

const WAKES_MS = 5_000;
const TOPIC = ["recommendations"] as const;

function useRecommendations(deployment: string) {
  const stream = useLiveStream();
  const first = `/recommendations?limit=100${deployment && `&deployment=${deployment}`}`;
  return useInfiniteQuery({
    queryKey: [...TOPIC, first],
    initialPageParam: first,
    queryFn: async ({ pageParam }) => {
      const { data, seq } = await call<Page<RecommendationRow>>(pageParam);
      stream.arrived(TOPIC, seq);
      return data;
    },
    getNextPageParam: (page) => page.next ?? undefined,
  });
}

export function Recommendations() {
  const { deployment } = useScope();
  const { tab: asked, id } = useSearch({ from: "/recommendations" });
  const tab: Tab = TABS.find(({ name }) => name === asked)?.name ?? "pending";
  const [find, setFind] = useState("");
  const query = useRecommendations(deployment);
  const rows = query.data?.pages.flatMap((page) => page.items);
  const now = useNow(WAKES_MS);
  const wanted = find.toLowerCase();
  const shown = sorted(
    (rows ?? []).filter(
      (row) =>
        tabOf(row, now) === tab && row.recommendation.title.toLowerCase().includes(wanted),
    ),
    tab,
  );
  return (
    <div className="grid items-start gap-4 lg:grid-cols-[minmax(18rem,26rem)_1fr]">
      <div className={classes(id && "hidden lg:block", "min-w-0")}>
        <Tabs tab={tab} rows={rows} now={now} />
        <input
          data-search=""
          type="search"
          aria-label="search titles"
          placeholder="Search titles ( / )"
          value={find}
          onChange={(event) => setFind(event.target.value)}
          className="my-3 w-full rounded-md border border-line bg-panel px-3 py-1.5 placeholder:text-muted"
        />
        {query.isError && <ProblemNote error={query.error} />}
        {rows === undefined && !query.isError && <Skeleton lines={4} height="h-20" />}
        {rows !== undefined && shown.length === 0 && <Nothing tab={tab} find={find} />}
        <ul className={classes("space-y-2", query.isError && "opacity-60")}>
          {shown.map((row) => (
            <Row key={row.id} row={row} chosen={row.id === id} tab={tab} now={now} />
          ))}
        </ul>
        {query.hasNextPage && (
          <Button className="mt-3 w-full" onClick={() => void query.fetchNextPage()}>
            Load older recommendations
          </Button>
        )}
      </div>
      <div className="min-w-0">
        {id ? (
          <Card key={id} id={id} tab={tab} />
        ) : (
          shown.length > 0 && (
            <div className="hidden rounded-lg border border-dashed border-line lg:block">
              <Empty why="Choose one to see it whole." next="j and k move, Enter opens." />
            </div>
          )
        )}
      </div>
    </div>
  );
}

interface TabsProps {
  tab: Tab;
  rows: RecommendationRow[] | undefined;
  now: number;
}

function Tabs({ tab, rows, now }: TabsProps) {
  const navigate = useNavigate({ from: "/recommendations" });
  const number = (name: Tab) => rows?.filter((row) => tabOf(row, now) === name).length ?? "–";
  return (
    <div role="group" aria-label="state" className="flex flex-wrap gap-1">
      {TABS.map(({ name, about }) => (
        <button
          key={name}
          type="button"
          aria-pressed={name === tab}
          title={about}
          onClick={() => void navigate({ search: ({ id: _, ...rest }) => ({ ...rest, tab: name }) })}
          className={classes(
            "rounded-md px-2 py-1 text-sm",
            name === tab ? "bg-accent-soft font-semibold text-accent" : "text-muted hover:bg-raised",
          )}
        >
          {name} <span className="text-xs">{number(name)}</span>
        </button>
      ))}
    </div>
  );
}

interface RowProps {
  row: RecommendationRow;
  chosen: boolean;
  tab: Tab;
  now: number;
}

function Row({ row, chosen, tab, now }: RowProps) {
  const { title, deployment, risk, saving_usd_per_month: saving } = row.recommendation;
  return (
    <li>
      <Link
        to="/recommendations"
        search={(before) => ({ ...before, tab, id: row.id })}
        data-row={chosen ? "chosen" : ""}
        aria-current={chosen ? "true" : undefined}
        className={classes(
          "block rounded-lg border bg-panel p-3 hover:bg-raised",
          chosen ? "border-accent" : "border-line",
        )}
      >
        <span className="block font-medium">{title}</span>
        <span className="mt-1 flex flex-wrap items-center gap-2 text-xs text-muted">
          <StateBadge state={row.state} />
          {isAsleep(row.snoozed, now) && (
            <Badge>
              snoozed until {dayAndClock(row.snoozed.until)} by {row.snoozed.by}
            </Badge>
          )}
          <RiskBadge risk={risk} />
          <span>{deployment}</span>
          <Ago at={row.proposed_at} />
        </span>
        <span className="mt-1 block text-sm">
          {saving ? `saves ${savingRange(saving)}` : "no saving estimated"}
        </span>
      </Link>
    </li>
  );
}

function Nothing({ tab, find }: { tab: Tab; find: string }) {
  if (find) return <Empty why={`Nothing here has “${find}” in its title.`} next="Esc leaves the search." />;
  if (tab !== "pending") return <Empty why={`Nothing is ${tab} yet.`} />;
  return (
    <Empty
      why="Nothing waits for a decision."
      next={
        <>
          The agents propose when they find something; <Code>optiinfra agents ls</Code> shows
          whether they look.
        </>
      }
    />
  );
}

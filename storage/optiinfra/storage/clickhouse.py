"""The metric store on ClickHouse: chdb inside this process, or a server at a URL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from math import isnan
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

from optiinfra.schemas.errors import Conflict, Invariant, Rejected, Unavailable
from optiinfra.storage import clickhouse_folds as folds
from optiinfra.storage import clickhouse_forecasts as forecasts
from optiinfra.storage import clickhouse_heat as heats
from optiinfra.storage import clickhouse_queries as queries
from optiinfra.storage import clickhouse_rollups as rollups
from optiinfra.storage import clickhouse_summaries as windows
from optiinfra.storage.clickhouse_schema import REFOLDED_H, Retention, statements
from optiinfra.storage.metric_rows import (
    MetricRow,
    PartPoint,
    Resolution,
    SeriesPoint,
    SeriesQuery,
    Steps,
    StoredRow,
    hours,
    stored,
)
from optiinfra.storage.owner_thread import OwnerThread

Result = TypeVar("Result")

EMBEDDED_SCHEME = "chdb"
SERVER_THREADS = 4
MAX_ROWS_PER_INSERT = 100_000
MAX_ROWS_PER_ANSWER = 200_000
UNKNOWN_TABLE = "UNKNOWN_TABLE"
TOO_MUCH = ("MEMORY_LIMIT_EXCEEDED", "TIMEOUT_EXCEEDED")
TOUCHED_FOR_S = rollups.QUIET_S / 3
"""For so long an hour that was noted needs no other note: nobody folds it before it is quiet."""
SETTINGS = {"max_memory_usage": 512 << 20, "max_threads": 2, "max_execution_time": 30}
ONE_BLOCK_ONCE = {
    "async_insert": 0,
    "insert_deduplicate": 1,
}


def _now() -> datetime:
    return datetime.now(UTC)


class MetricStore:
    """Samples of every tenant's deployments.

    `url` is `chdb:///folder` (this process must be the only one on that folder, and one process
    can open one folder) or `clickhouse://user:password@host:8123` or `http(s)://…`. The first
    call connects. Errors: `Rejected` for a request out of bounds, `Unavailable` for a server that
    does not answer, `Conflict` for a folder that cannot be opened, `Invariant` for refused SQL.
    """

    def __init__(
        self,
        url: str,
        *,
        database: str = "optiinfra",
        retention: Retention | None = None,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._url = url
        self._database = database
        self._retention = retention or Retention()
        self._clock = clock
        self._client: Client | None = None
        self._opening = threading.Lock()
        self._touched: dict[rollups.Touched, float] = {}
        embedded = urlsplit(url).scheme == EMBEDDED_SCHEME
        self._thread = OwnerThread("clickhouse", 1 if embedded else SERVER_THREADS)

    async def migrate(self) -> None:
        """Create or update tables, rollups and retention; may be repeated."""

        def run(client: Client) -> None:
            for statement in statements(self._retention):
                client.command(statement)

        await self._ask(run)

    async def insert(self, rows: Sequence[MetricRow], dedup_token: str) -> None:
        """As `insert_stored`."""
        await self.insert_stored([stored(row) for row in rows], dedup_token)

    async def insert_stored(self, rows: Sequence[StoredRow], dedup_token: str) -> None:
        """Add a batch in one insert; what was there already changes no answer, rollups included.

        The same token again adds nothing; it must follow from the batch's messages alone. A sample
        redelivered in *another* batch is stored twice and counted once, by its event id. Only what
        has returned from here may be acknowledged: rollups do not know of the rest.
        """
        if not rows:
            return
        if len(rows) > MAX_ROWS_PER_INSERT:
            raise Rejected(f"{len(rows)} rows in one batch", hint=f"at most {MAX_ROWS_PER_INSERT}")
        settings = ONE_BLOCK_ONCE | {"insert_deduplication_token": dedup_token}

        def run(client: Client) -> None:
            block = list(rows)
            try:
                client.insert("metrics", block, column_names=queries.COLUMNS, settings=settings)
            finally:
                block.clear()  # the client's context of an insert holds itself, and so this list
            self._touch(client, hours(rows))

        await self._ask(run)

    def _touch(self, client: Client, hours: set[rollups.Touched]) -> None:
        """Notes what has changed; not again what was noted so lately that it cannot be folded."""
        now_s = time.monotonic()
        fresh = {hour: at for hour, at in self._touched.items() if now_s - at < TOUCHED_FOR_S}
        news = hours - fresh.keys()
        if news:
            client.command(rollups.TOUCH, rollups.touch_parameters(news, self._retention.raw_days))
        self._touched = fresh | dict.fromkeys(news, now_s)

    async def fold(self, *, quiet_s: int = rollups.QUIET_S) -> int:
        """Fold hours and days that are over and have been quiet for `quiet_s` into the rollups.

        Gives how many were folded; a few at a time, so it is to be called now and then. It only
        makes reading faster and lets the rollups outlive the raw rows: `series` is exact before.
        """
        return await self._fold(rollups.HOUR, quiet_s) or await self._fold(rollups.DAY, quiet_s)

    async def _fold(self, span: str, quiet_s: int) -> int:
        question = queries.Question(rollups.PENDING, rollups.pending_parameters(span, quiet_s))
        found = [rollups.Pending(span, *row) for row in await self._rows(question)]
        for one in found:
            await self._fold_one(one)
        return len(found)

    async def _fold_one(self, pending: rollups.Pending) -> None:
        def run(client: Client) -> None:
            self._touched = {}
            client.command(rollups.FOLD[pending.span], pending.parameters())
            client.command(rollups.FOLDED, pending.parameters())

        await self._ask(run)

    async def series(self, query: SeriesQuery) -> list[SeriesPoint]:
        """The series in at most `query.points` steps, computed by the server; gaps are absent."""
        question = queries.series(query, self.resolution(query))
        width_ms = question.parameters["width_ms"]
        since_ms = question.parameters["since_ms"]
        return [
            _point(queries.moment(since_ms + step * width_ms), *statistics)
            for step, *statistics in await self._rows(question)
        ]

    def resolution(self, query: SeriesQuery) -> Resolution:
        """The table that a series is read from."""
        return query.resolution or queries.resolution_for(query, self._retention, self._clock())

    async def folded(self, query: folds.FoldQuery) -> Steps:
        """A series of each part, or of all together, step by step; gaps are absent.

        Raises `Rejected` for more than `MAX_PARTS` series.
        """
        question = folds.folded(query, self.resolution(query.window))
        return await self._steps(question)

    async def pooled(self, query: folds.PooledQuery) -> Steps:
        """A statistic of all that a histogram observed in each step, of each replica or of all."""
        return await self._steps(folds.pooled(query))

    async def heat(self, window: SeriesQuery) -> heats.Heat:
        """How a histogram filled, step by step and bin by bin, over all replicas."""
        question = heats.heat(window)
        return heats.heat_of(question, await self._rows(question))

    async def forecasts(self, query: forecasts.ForecastQuery) -> forecasts.Recorded:
        """Forecasts of a deployment's load as they were made, and the load that came."""
        made, came, first = [await self._rows(one) for one in forecasts.questions(query)]
        return forecasts.recorded(made, came, first)

    async def _steps(self, question: queries.Question) -> Steps:
        rows = await self._rows(question)
        if len(rows) > folds.MAX_VALUES:
            raise Rejected(f"over {folds.MAX_PARTS} series", hint="fold them, or name one replica")
        return Steps(
            since=queries.moment(question.parameters["since_ms"]),
            width_s=question.parameters["width_ms"] / 1_000,
            points=[PartPoint(*row) for row in rows],
        )

    async def summaries(self, query: windows.SummaryQuery) -> list[windows.Summary]:
        """What the window holds of several metrics, one row for each series.

        Raises `Rejected` for more than `MAX_ROWS` series.
        """
        opened = None
        if self._folds_since(query.since) and windows.has_whole_hours(query):
            opened = [(name, int(at)) for name, at in await self._rows(windows.open_hours(query))]
        found = list(await self._rows(windows.summaries(query, open_hours=opened)))
        if len(found) > windows.MAX_ROWS:
            raise Rejected(f"over {windows.MAX_ROWS} series", hint="ask for one deployment")
        for one in windows.doubtful(query, found):
            (deployment,), metrics = one.deployments or (), one.metrics
            found = [row for row in found if row[0] != deployment or row[2] not in metrics]
            found += await self._rows(windows.summaries(one, open_hours=opened, once=True))
        found.sort(key=lambda row: tuple(row[: windows.KEYS]))
        return [windows.summary_of(*row) for row in found]

    def _folds_since(self, since: datetime) -> bool:
        """Whether hours since then are folded with all that comes, however late."""
        folded_h = min(REFOLDED_H, rollups.oldest_h(self._retention.raw_days))
        return self._clock() - since <= timedelta(hours=folded_h)

    async def answers(self, query: windows.AnswersQuery) -> list[MetricRow]:
        """A page of single readings, the latest first."""
        return [_row(*values) for values in await self._rows(windows.answers(query))]

    async def latest(
        self,
        tenant: str,
        deployment: str,
        *,
        since: datetime,
        metrics: Sequence[str] | None = None,
    ) -> list[MetricRow]:
        """The newest sample of each metric, replica and set of labels, not older than `since`."""
        question = queries.latest(tenant, deployment, since, metrics)
        return [_row(*values) for values in await self._rows(question)]

    async def window(
        self,
        tenant: str,
        deployment: str,
        metric: str,
        *,
        since: datetime,
        until: datetime,
        replicas: Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int = MAX_ROWS_PER_ANSWER,
    ) -> list[MetricRow]:
        """Every sample in [since, until), oldest first; `Rejected` when there are over `limit`.

        `replicas` and `labels` narrow it: one of these replicas, all of these labels.
        """
        question = queries.window(
            tenant=tenant,
            deployment=deployment,
            metric=metric,
            since=since,
            until=until,
            replicas=replicas,
            labels=labels,
            limit=limit,
        )
        found = await self._rows(question)
        if len(found) > limit:
            raise Rejected(f"over {limit} samples of {metric}", hint="ask for a shorter window")
        return [_row(*values) for values in found]

    async def ping(self) -> None:
        """Ask the server for a constant; `Unavailable` when it does not answer."""
        await self._ask(lambda client: client.command("SELECT 1"))

    async def drop_database(self) -> None:
        """Delete everything in this store's database."""
        name = self._database
        drop = "DROP DATABASE IF EXISTS {name:Identifier} SYNC"
        await self._ask(lambda client: client.command(drop, {"name": name}, use_database=False))

    async def aclose(self) -> None:
        """Wait for the calls under way and close the connection. Idempotent."""
        await self._thread.aclose(self._close)

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    async def _rows(self, question: queries.Question) -> Sequence[Sequence[Any]]:
        def run(client: Client) -> Sequence[Sequence[Any]]:
            try:
                return client.query(question.sql, question.parameters).result_rows
            except ClickHouseError as error:
                if any(limit in str(error) for limit in TOO_MUCH):
                    hint = "ask for a shorter window, or for one deployment"
                    raise Rejected("that is more than can be read at once", hint=hint) from error
                raise

        return await self._ask(run)

    async def _ask(self, function: Callable[[Client], Result]) -> Result:
        return await self._thread.call(lambda: self._translated(function))

    def _translated(self, function: Callable[[Client], Result]) -> Result:
        try:
            return function(self._connected())
        except OperationalError as error:
            raise Unavailable(f"ClickHouse does not answer: {error}") from error
        except ClickHouseError as error:
            if UNKNOWN_TABLE in str(error):
                hint = "run `optiinfra migrate`"
                raise Unavailable("the metric store has no tables", hint=hint) from error
            raise Invariant(f"ClickHouse refused: {error}") from error

    def _connected(self) -> Client:
        with self._opening:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Client:
        parts = urlsplit(self._url)
        if parts.scheme == EMBEDDED_SCHEME:
            client = _open_folder(Path(unquote(parts.path)))
        else:
            client = clickhouse_connect.get_client(
                dsn=self._url, settings=SETTINGS, autogenerate_session_id=False
            )
        client.command("CREATE DATABASE IF NOT EXISTS {name:Identifier}", {"name": self._database})
        client.database = self._database
        return client


def _open_folder(folder: Path) -> Client:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return clickhouse_connect.get_client(interface="chdb", path=str(folder), settings=SETTINGS)
    except ClickHouseError as error:
        raise Conflict(f"chdb cannot open {folder}: {error}") from error


def _row(*values: Any) -> MetricRow:
    tenant, deployment, replica, metric, at_ms, value, reason, unit, labels, event_id = values
    return MetricRow(
        tenant=tenant,
        deployment=deployment,
        replica=replica or None,
        metric=metric,
        at=queries.moment(at_ms),
        value=value,
        unknown_reason=reason or None,
        unit=unit,
        labels=labels,
        event_id=event_id,
    )


def _point(at: datetime, *statistics: Any) -> SeriesPoint:
    mean, low, high, quantiles, known, unknown = statistics
    p50, p95, p99 = (None if isnan(quantile) else quantile for quantile in quantiles)
    return SeriesPoint(
        at=at, mean=mean, low=low, high=high,
        p50=p50, p95=p95, p99=p99, known=known, unknown=unknown,
    )  # fmt: skip

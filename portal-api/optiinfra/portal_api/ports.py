"""What the API is given: stores, the feed and the decisions, each ready to use."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi.requests import HTTPConnection

from optiinfra.events.bus import Bus
from optiinfra.events.condition import ConsumerCondition, consumer_condition
from optiinfra.events.feed import Feed
from optiinfra.events.subjects import Stream
from optiinfra.portal_api.hindsight import Hindsight, Reading
from optiinfra.portal_api.lately import Lately
from optiinfra.portal_api.live.hub import Hub
from optiinfra.portal_api.live.settled import Settled
from optiinfra.portal_api.notifications.declared import Declared
from optiinfra.portal_api.notifications.slack_desk import SlackDesk, closed_desk
from optiinfra.portal_api.providers.port import Providers
from optiinfra.portal_api.remembered import RememberedSeries
from optiinfra.schemas.errors import Unavailable
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.letters import Letters
from optiinfra.storage.postgres.access import AccessTokens
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.decisions import Decisions, Publishes
from optiinfra.storage.postgres.documents import Documents
from optiinfra.storage.postgres.keys import Keys
from optiinfra.storage.postgres.proposals import Proposals
from optiinfra.storage.postgres.queries import Queries
from optiinfra.storage.postgres.reports import Reports
from optiinfra.storage.postgres.sessions import Sessions
from optiinfra.storage.postgres.sign_ins import SignIns
from optiinfra.storage.postgres.users import Users
from optiinfra.storage.rates import Rates
from optiinfra.storage.redis import RegistryCache


@dataclass(frozen=True, slots=True)
class People:
    """Who may sign in, and with what."""

    users: Users
    keys: Keys
    sessions: Sessions
    sign_ins: SignIns


class Consumers:
    """How far those who work on changes are, as the broker says."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def condition(self, name: str) -> ConsumerCondition | None:
        """None when there is no such consumer. Raises `Unavailable`, `Denied`."""
        return await consumer_condition(self._bus, Stream.CHANGES, name)


@dataclass(frozen=True, slots=True)
class ApiPorts:
    """`origins` are the web origins that may open the live stream beside the API's own.

    `notifications` is what the file of this process declares; none without such a file.
    """

    database: Database
    queries: Queries
    documents: Documents
    access: AccessTokens
    people: People
    decisions: Decisions
    proposals: Proposals
    hub: Hub
    settled: Settled
    letters: Letters
    origins: frozenset[str] = frozenset()
    providers: Providers = field(default_factory=Providers)
    rates: Rates = field(default_factory=Rates)
    slack: SlackDesk = field(default_factory=closed_desk)
    notifications: Declared | None = None
    metric_store: MetricStore | None = None
    consumers: Consumers | None = None
    series: RememberedSeries = field(default_factory=lambda: RememberedSeries(None))
    looks: Lately = field(default_factory=Lately)
    hindsight: Reading = field(default_factory=lambda: Reading(None))

    @property
    def metrics(self) -> MetricStore:
        """Raises `Unavailable` where this API was given none."""
        if self.metric_store is None:
            raise Unavailable("this API has no metric store", hint="set OPTIINFRA_CLICKHOUSE_URL")
        return self.metric_store

    @property
    def reports(self) -> Reports:
        return Reports(self.database)


def api_ports(
    database: Database,
    bus: Bus,
    publisher: Publishes,
    *,
    letters: Letters | None = None,
    providers: Providers | None = None,
    rates: Rates | None = None,
    slack: SlackDesk | None = None,
    notifications: Declared | None = None,
    metrics: MetricStore | None = None,
    cache: RegistryCache | None = None,
    hindsight: Hindsight | None = None,
    origins: frozenset[str] = frozenset(),
    ring_size: int = 4096,
) -> ApiPorts:
    """The ports over one database and one bus; without `letters` none is sent again.

    Without `metrics` what needs them is unavailable; without `cache` no series is remembered;
    without `hindsight` no log is read again.
    """
    queries, hub = Queries(database), Hub(Feed(bus), ring_size=ring_size)
    access = AccessTokens(database)
    return ApiPorts(
        database=database,
        queries=queries,
        documents=Documents(database),
        access=access,
        people=people_in(database, access),
        decisions=Decisions(database, publisher),
        proposals=Proposals(database),
        hub=hub,
        settled=Settled(hub, queries),
        letters=letters or Letters(bus, database, None),
        origins=origins,
        providers=providers or Providers(),
        rates=rates or Rates(),
        slack=slack or closed_desk(),
        notifications=notifications,
        metric_store=metrics,
        consumers=Consumers(bus),
        series=RememberedSeries(cache),
        hindsight=Reading(hindsight),
    )


def people_in(database: Database, access: AccessTokens) -> People:
    """The people that a database knows; `access` is told when somebody's rights change."""
    sessions = Sessions(database, access)
    return People(
        users=Users(database, access),
        keys=Keys(database, access),
        sessions=sessions,
        sign_ins=SignIns(database, sessions),
    )


def ports_of(connection: HTTPConnection) -> ApiPorts:
    """The ports that the application was made with."""
    ports: ApiPorts = connection.app.state.ports
    return ports

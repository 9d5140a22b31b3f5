"""How a consumer behaves, what it needs of others, and what it counts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from nats.js.api import ConsumerConfig, DeliverPolicy

from optiinfra.events.durable import DurableSpec
from optiinfra.events.envelope import Event
from optiinfra.events.facts import Fact
from optiinfra.events.subjects import BY_PREFIX, Stream
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import token

LEAST_ACK_PENDING = 1024
INSTANCES = 16
"""How many instances of one role may hold their fill at once."""


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """One durable consumer, shared by the instances of its role.

    `attempts` failures of the handler bury a message; so do more than `max_deliver` deliveries
    without an answer (a message that ends the process each time). The broker's own limit is twice
    that, since a message that it gives up is heard of no more. `linger_s` lets a batch wait to
    fill. `batches` are handled at once, and one more is in hand. Times in s.
    """

    name: str
    stream: Stream
    prefixes: tuple[str, ...]
    batch: int = 64
    concurrency: int = 16
    ack_wait_s: float = 30.0
    heartbeat_s: float = 10.0
    max_deliver: int = 20
    attempts: int = 6
    backoff_base_s: float = 0.5
    backoff_cap_s: float = 60.0
    linger_s: float = 0.0
    batches: int = 1
    buried_as: str | None = None
    """The name that its dead letters go under, where a role has many consumers; else its own."""
    from_now: bool = False
    """Its very first delivery is what comes after it was made, in place of all that is kept."""

    def __post_init__(self) -> None:
        token(self.name)
        for prefix in self.prefixes:
            row = BY_PREFIX.get(prefix)
            if row is None or row.stream is not self.stream:
                raise Rejected(f"{self.stream} holds no {prefix!r}")
        if self.heartbeat_s * 2 > self.ack_wait_s:
            raise Rejected("heartbeat_s must be at most half of ack_wait_s")

    def durable(self) -> DurableSpec:
        """What the broker must know."""
        return DurableSpec(
            name=self.name,
            stream=self.stream.value,
            filters=tuple(BY_PREFIX[prefix].pattern for prefix in self.prefixes),
            ack_wait_s=self.ack_wait_s,
            max_deliver=2 * self.max_deliver,
            max_ack_pending=max(LEAST_ACK_PENDING, INSTANCES * self.batch),
            first=ConsumerConfig(deliver_policy=DeliverPolicy.NEW) if self.from_now else None,
        )


class Inbox(Protocol):
    """Remembers what a consumer has handled. Both may raise `Unavailable`."""

    async def seen(self, consumer: str, event_id: str) -> bool: ...
    async def mark(self, consumer: str, event_id: str) -> None: ...


class Buries(Protocol):
    """What a consumer needs of a publisher."""

    def event(self, fact: Fact, *, tenant: str, id: str | None = None) -> Event: ...  # noqa: A002
    async def publish(self, event: Event) -> int: ...


@dataclass(slots=True)
class ConsumerStats:
    """Counts since the start; `lag` is what waits on the broker (None: not known yet)."""

    received: int = 0
    acked: int = 0
    retried: int = 0
    dead_lettered: int = 0
    lag: int | None = None
    last_progress: float = field(default_factory=time.monotonic)
    """When a message was finished, or there was none to do; on the monotonic clock, s."""

    def progressed(self) -> None:
        self.last_progress = time.monotonic()

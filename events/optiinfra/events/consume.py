"""Consumes durably: every message is handled, retried, or buried with its cause; none is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from nats.aio.msg import Msg

from optiinfra.events.bus import Bus
from optiinfra.events.delivery import Delivery, Key, dead_letter_of, delivery_of
from optiinfra.events.durable import Durable, DurableSpec
from optiinfra.events.envelope import Event, decode
from optiinfra.events.facts import Fact
from optiinfra.events.pull import Ended, Pull
from optiinfra.events.refusals import BROKER_ERRORS
from optiinfra.events.subjects import BY_PREFIX, Stream
from optiinfra.events.verdicts import Verdict, backoff_s, retry_after_s, verdict_on
from optiinfra.schemas.errors import Invariant, OptiInfraError, Rejected, Unavailable
from optiinfra.schemas.ids import token

log = logging.getLogger("optiinfra.events.consume")

Handle = Callable[[Event], Awaitable[None]]
HandleBatch = Callable[[Sequence[Event]], Awaitable[Sequence[BaseException | None]]]

PATIENCE_S = 10.0
"""How long a connected broker may go without stream or JetStream before `run` gives up."""
GRACE_S = 3.0
"""How long handlers may still run after a cancellation."""
LOOK_EVERY_S = 5.0
HOLD_LIMIT_S = 60.0
"""How long a message is held for infrastructure before it goes back to the broker."""
HOLD_CAP_S = 5.0
CONFLICT_TRIES = 5
CONFLICT_BASE_S = 0.05
REMEMBERED = 4096
"""How many finished messages are remembered, so that a lost acknowledgement has no effect."""
"""x"""


class Inbox(Protocol):
    """Remembers what a consumer has handled. Both may raise `Unavailable`."""

    async def seen(self, consumer: str, event_id: str) -> bool: ...
    async def mark(self, consumer: str, event_id: str) -> None: ...


class Buries(Protocol):
    """What a consumer needs of a publisher."""

    def event(self, fact: Fact, *, tenant: str, id: str | None = None) -> Event: ...  # noqa: A002
    async def publish(self, event: Event) -> int: ...

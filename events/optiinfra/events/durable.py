"""A durable consumer on the broker: made, brought up to date, checked, and made again when gone."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy
from nats.js.errors import BadRequestError, NotFoundError

from optiinfra.events.bus import Bus
from optiinfra.events.refusals import STREAM_NOT_FOUND
from optiinfra.schemas.errors import Conflict, Unavailable

log = logging.getLogger("optiinfra.events.durable")


@dataclass(frozen=True, slots=True, kw_only=True)
class DurableSpec:
    """What the broker must know of a durable consumer."""

    name: str
    stream: str
    filters: tuple[str, ...]
    ack_wait_s: float
    max_deliver: int
    max_ack_pending: int
    first: ConsumerConfig | None = None
    """Where the very first delivery starts (policy, sequence, time); from the beginning if None."""


def left_of(info: ConsumerInfo) -> int | None:
    """How many messages the broker has not delivered yet; None: it does not tell.

    A consumer that is still being made is told of as one for which nothing is left.
    """
    has_delivered = info.delivered is not None and info.delivered.consumer_seq > 0
    return info.num_pending or (0 if has_delivered else None)


class Durable:
    """Keeps one durable consumer in being.

    `floor` is the last sequence up to which everything was acknowledged by all instances, as the
    broker said it last: a consumer that was deleted is made again from there.
    """

    def __init__(self, bus: Bus, spec: DurableSpec) -> None:
        self._bus = bus
        self._spec = spec
        self._stream_created: datetime | None = None
        self.floor: int | None = None

    async def attach(self) -> ConsumerInfo:
        """Makes the consumer, or brings it up to date; gives what the broker knows of it.

        Raises `Conflict` when a consumer of this name is of another kind, `Unavailable` when the
        stream is missing or the broker does not answer.
        """
        await self._note_stream()
        info = await self.look()
        if info is None:
            return await self._create()
        self._refuse_other_kind(info.config)
        if self._is_current(info.config):
            return info
        log.warning("consumer %s: its configuration is brought up to date", self._spec.name)
        return await self._write(info.config)

    async def look(self) -> ConsumerInfo | None:
        """What the broker says now; None when there is no such consumer."""

        async def look() -> ConsumerInfo | None:
            try:
                found: ConsumerInfo = await self._bus.js.consumer_info(
                    self._spec.stream, self._spec.name
                )
                return found
            except NotFoundError as missing:
                if missing.err_code == STREAM_NOT_FOUND:
                    raise
                return None

        info = await self._bus.ask(look, f"cannot look at the consumer {self._spec.name}")
        if info is not None and info.ack_floor is not None:
            self.floor = info.ack_floor.stream_seq
        return info

    async def _note_stream(self) -> None:
        """Forgets the position when the stream is another one under the same name."""
        info = await self._bus.ask(
            lambda: self._bus.js.stream_info(self._spec.stream),
            f"cannot look at the stream {self._spec.stream}",
        )
        if self._stream_created not in (None, info.created):
            log.warning("stream %s was made anew: read from its start", self._spec.stream)
            self.floor = None
        self._stream_created = info.created

    async def _create(self) -> ConsumerInfo:
        start = self._spec.first or ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
        if self.floor is not None:
            log.warning("consumer %s is gone: made again after %d", self._spec.name, self.floor)
            start = ConsumerConfig(
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=self.floor + 1
            )
        try:
            return await self._write(start)
        except Conflict:
            # Another instance was faster, with a start of its own.
            info = await self.look()
            if info is None:
                raise Unavailable(f"the consumer {self._spec.name} comes and goes") from None
            return info

    async def _write(self, base: ConsumerConfig) -> ConsumerInfo:
        spec = self._spec
        config = base.evolve(
            name=spec.name,
            durable_name=spec.name,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=spec.ack_wait_s,
            max_deliver=spec.max_deliver,
            max_ack_pending=spec.max_ack_pending,
            filter_subject=None,
            filter_subjects=list(spec.filters),
        )

        async def write() -> ConsumerInfo:
            try:
                return await self._bus.js.add_consumer(spec.stream, config)
            except BadRequestError as refused:
                raise Conflict(
                    f"the broker refuses the consumer {spec.name}: {refused.description}"
                ) from refused

        info = await self._bus.ask(write, f"cannot make the consumer {spec.name}")
        if info.ack_floor is not None:
            self.floor = max(self.floor or 0, info.ack_floor.stream_seq)
        return info

    def _refuse_other_kind(self, found: ConsumerConfig) -> None:
        differing = []
        if found.ack_policy != AckPolicy.EXPLICIT:
            differing.append(f"ack_policy is {found.ack_policy!r}, should be 'explicit'")
        if found.deliver_subject:
            differing.append("deliver_subject is set, should be a pull consumer")
        if found.headers_only:
            differing.append("headers_only is set")
        if differing:
            raise Conflict(
                f"the consumer {self._spec.name} on {self._spec.stream} is of another kind: "
                + "; ".join(differing),
                hint="delete it, or give this consumer another name",
            )

    def _is_current(self, found: ConsumerConfig) -> bool:
        filters = found.filter_subjects or ([found.filter_subject] if found.filter_subject else [])
        return (
            set(filters) == set(self._spec.filters)
            and found.ack_wait == self._spec.ack_wait_s
            and found.max_deliver == self._spec.max_deliver
            and found.max_ack_pending == self._spec.max_ack_pending
        )

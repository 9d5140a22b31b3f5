"""Tells what happens: one durable consumer a target, so that none waits for another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from optiinfra.events.bus import Bus
from optiinfra.events.bus_roles import BusRole
from optiinfra.events.consume import Consumer, ConsumerSpec, Inbox
from optiinfra.events.consumer_spec import Buries
from optiinfra.events.envelope import Event
from optiinfra.events.facts import change_of
from optiinfra.events.subjects import Stream
from optiinfra.portal_api.notifications.message import message_of, notice_of
from optiinfra.portal_api.notifications.senders import Sender
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.schemas.notification import Notice, Notifications
from optiinfra.schemas.recommendation import Recommendation

log = structlog.get_logger()


def consumer_of(tenant: str, target: str) -> str:
    """The name of the durable consumer that tells a target."""
    return f"notify-{tenant}-{target}"


class Proposals(Protocol):
    """Where a change's proposal is read from."""

    async def proposal(self, tenant: str, change: str) -> Recommendation | None: ...
    async def is_asleep(self, tenant: str, change: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class NotifierPorts:
    bus: Bus
    publisher: Buries
    inbox: Inbox
    proposals: Proposals
    clock: Callable[[], datetime]
    jitter: Callable[[], float]


class Notifier:
    """Tells one target what the rules send to it."""

    def __init__(
        self, tenant: str, target: str, wanted: Notifications, sender: Sender, ports: NotifierPorts
    ) -> None:
        self._tenant, self._target, self._wanted = tenant, target, wanted
        self._sender, self._ports = sender, ports

    @property
    def name(self) -> str:
        """That of its durable consumer."""
        return consumer_of(self._tenant, self._target)

    async def run(self) -> None:
        """Tells what comes from its first start on, and keeps its place from then; until cancelled.

        Raises as `Consumer.run`.
        """
        await self._consumer().run()

    def _consumer(self) -> Consumer:
        return Consumer(
            self._ports.bus,
            ConsumerSpec(
                name=self.name,
                stream=Stream.CHANGES,
                prefixes=tuple(self._wanted.notices_for(self._target)),
                concurrency=4,
                backoff_base_s=1.0,
                backoff_cap_s=300.0,
                buried_as=BusRole.NOTIFIER.value,
                from_now=True,
            ),
            handle=self.tell,
            handle_batch=None,
            publisher=self._ports.publisher,
            inbox=self._ports.inbox,
            clock=self._ports.clock,
            jitter=self._ports.jitter,
        )

    async def tell(self, event: Event) -> None:
        """Sends what a rule wants sent; for what sleeps nobody is asked.

        Raises `Unavailable` while the target cannot take it, `Rejected` when it never will or it
        could not be sent for `give_up_after_s`.
        """
        if event.tenant != self._tenant:
            return
        change = change_of(event.fact)
        proposal = await self._ports.proposals.proposal(event.tenant, change) if change else None
        url = self._wanted.portal_url
        message = message_of(event, proposal, str(url) if url else None)
        notice = notice_of(event)
        if not self._wanted.sends(self._target, notice, message.risk, message.deployment):
            return
        if notice is Notice.APPROVAL_REQUESTED and await self._sleeps(event):
            log.info("notification.kept_back", target=self._target, event_id=event.id)
            return
        try:
            await self._sender.send(message)
        except Unavailable as failed:
            limit = timedelta(seconds=self._wanted.give_up_after_s)
            if self._ports.clock() - event.time > limit:
                raise Rejected(f"not told within {limit}: {failed}") from failed
            log.warning("notification.not_sent", target=self._target, reason=str(failed))
            raise
        log.info("notification.sent", target=self._target, notice=notice.value, event_id=event.id)

    async def _sleeps(self, event: Event) -> bool:
        """Whether somebody has put off what is asked for: it came late, or is sent again."""
        change = change_of(event.fact)
        return change is not None and await self._ports.proposals.is_asleep(event.tenant, change)

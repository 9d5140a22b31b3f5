"""What the notifications file of this process declares, and the way to each of its targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from optiinfra.portal_api.notifications.message import Message
from optiinfra.portal_api.notifications.senders import Sender
from optiinfra.schemas.ids import NewId
from optiinfra.schemas.notification import Notifications


@dataclass(frozen=True, slots=True)
class Declared:
    """One tenant's targets and rules; `senders` by the target's name hold their secrets."""

    tenant: str
    wanted: Notifications
    senders: Mapping[str, Sender]
    new_id: NewId
    clock: Callable[[], datetime]

    async def send_test(self, target: str, by: str) -> None:
        """Sends a message that says it is a test, as any other is sent, but once.

        Raises as `Sender.send`.
        """
        await self.senders[target].send(
            Message(
                id=self.new_id(),
                notice=None,
                tenant=self.tenant,
                at=self.clock(),
                title=f"A test of the target {target}",
                lines=(f"{by} has asked for it; nothing has happened and nothing is to be done.",),
                link=str(self.wanted.portal_url) if self.wanted.portal_url else None,
            )
        )

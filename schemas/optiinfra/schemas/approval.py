"""A person's or a policy's word on a change."""

from __future__ import annotations

from datetime import datetime

from pydantic import AwareDatetime

from optiinfra.schemas.base import Value
from optiinfra.schemas.ids import ChangeId
from optiinfra.schemas.tenant import Actor


class Approval(Value):
    """Bound to the version of the recommendation that was shown; another version makes it void."""

    change: ChangeId
    granted: bool
    by: Actor
    version_hash: str
    reason: str = ""
    at: AwareDatetime


class Snooze(Value):
    """A person's "not now": until then nobody is asked, and nothing begins.

    A waking is one that is over when it is said.
    """

    by: str
    until: AwareDatetime
    reason: str = ""
    at: AwareDatetime

    def lasts(self, now: datetime) -> bool:
        return now < self.until

"""A person's or a policy's word on a change."""

from __future__ import annotations

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

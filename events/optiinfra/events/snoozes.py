"""A person's "not now" on a recommendation, and its end."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime

from optiinfra.schemas.base import Value
from optiinfra.schemas.ids import ChangeId


class RecommendationSnoozed(Value):
    """A person puts the decision off: it stays pending, out of the way, until a time.

    Then whoever has not said yes is asked again (`approval.requested`).
    """

    kind: Literal["recommendation.snoozed"] = "recommendation.snoozed"
    change: ChangeId
    version_hash: str
    by: str
    until: AwareDatetime
    reason: str = ""
    at: AwareDatetime


class RecommendationWoken(Value):
    """A person ends the sleep early; one that is over by itself needs no event."""

    kind: Literal["recommendation.woken"] = "recommendation.woken"
    change: ChangeId
    version_hash: str
    by: str
    reason: str = ""
    at: AwareDatetime

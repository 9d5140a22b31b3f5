"""How a finished change turned out: predicted against realised."""

from __future__ import annotations

from pydantic import AwareDatetime

from optiinfra.schemas.base import Value
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.ids import ChangeId, DeploymentId
from optiinfra.schemas.money import Interval
from optiinfra.schemas.telemetry import Reading


class Outcome(Value):
    """What is remembered and found again for similar proposals."""

    change: ChangeId
    deployment: DeploymentId
    kind: str
    terminal: ChangeState
    predicted_usd_per_month: Interval | None = None
    realised_usd_per_month: Reading
    usd_per_hour_before: Reading
    usd_per_hour_after: Reading
    ttft_p95_s: Reading
    tpot_p95_s: Reading
    quality_mean: Reading
    features: dict[str, float]
    at: AwareDatetime

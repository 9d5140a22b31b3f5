"""What agents may ask of the stored telemetry."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from optiinfra.schemas.telemetry import Sample


class Telemetry(Protocol):
    """Reads samples back; implemented over ClickHouse by `storage`."""

    async def window(
        self,
        tenant: str,
        deployment: str,
        metric: str,
        *,
        since: datetime,
        until: datetime,
        replicas: Sequence[str] | None = None,
    ) -> Sequence[Sample]:
        """Samples of `metric` in [since, until), oldest first; unknown readings included."""
        ...

"""Times as a caller gives them: in a range that every store can hold."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime

_FIRST, _LAST = datetime(1971, 1, 1, tzinfo=UTC), datetime(2199, 1, 1, tzinfo=UTC)


def _of_our_time(at: datetime) -> datetime:
    if not _FIRST <= at <= _LAST:
        raise ValueError(f"give a time from {_FIRST.year} to {_LAST.year}")
    return at.astimezone(UTC)


Time = Annotated[AwareDatetime, AfterValidator(_of_our_time)]

"""What a failed handler means for its message: try again, hold it, or bury it with its cause."""

from __future__ import annotations

from enum import IntEnum

from nats.errors import Error

from optiinfra.schemas.errors import Conflict, Invariant, Rejected, Unavailable


class Verdict(IntEnum):
    """Graver verdicts are greater."""

    HOLD = 1
    """Infrastructure is away: no fault of the message, no attempt is counted."""
    SOON = 2
    """The state has moved on: try again at once with fresh state."""
    COUNT = 3
    """Unexpected: try again later, a bounded number of times."""
    BURY = 4
    """The message can never be handled."""
    ALARM = 5
    """A bug of our own: bury it and say so loudly."""


def verdict_on(failed: BaseException) -> Verdict:
    """The verdict on a handler's exception; of a group, the gravest of its members."""
    if isinstance(failed, BaseExceptionGroup):
        return max(verdict_on(member) for member in failed.exceptions)
    if isinstance(failed, Invariant):
        return Verdict.ALARM
    if isinstance(failed, Rejected):
        return Verdict.BURY
    if isinstance(failed, Conflict):
        return Verdict.SOON
    if isinstance(failed, (Unavailable, ConnectionError, TimeoutError, Error)):
        return Verdict.HOLD
    return Verdict.COUNT


def retry_after_s(failed: BaseException) -> float:
    """How long the failure itself asks to wait, s; 0 when it says nothing."""
    if isinstance(failed, BaseExceptionGroup):
        return max(retry_after_s(member) for member in failed.exceptions)
    return failed.retry_after_s if isinstance(failed, Unavailable) else 0.0


def backoff_s(attempt: int, base_s: float, cap_s: float) -> float:
    """The delay after failure number `attempt` (from 1), s: base·2ⁿ⁻¹, at most the cap."""
    return min(cap_s, base_s * 2.0 ** min(max(attempt, 1) - 1, 32))

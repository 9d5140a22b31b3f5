"""Ways in which an emulated replica can be made worse, decided by request and seed."""

from __future__ import annotations

from hashlib import blake2b

from pydantic import Field

from optiinfra.schemas.base import Value


class Defect(Value):
    """What is wrong with this replica; the default is nothing.

    `slowdown` multiplies step times. Rates are shares of requests: answered from sentences that the
    context does not hold, refused with a 500, or cut to a third. `hide_metrics` names families that
    `/metrics` leaves out.
    """

    slowdown: float = Field(default=1.0, gt=0, le=1000)
    wrong_answer_rate: float = Field(default=0.0, ge=0, le=1)
    error_rate: float = Field(default=0.0, ge=0, le=1)
    truncate_rate: float = Field(default=0.0, ge=0, le=1)
    hide_metrics: tuple[str, ...] = ()


class Draws:
    """Repeatable decisions: the n-th request of a seed always meets the same fate."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def number(self, ordinal: int, purpose: str) -> int:
        """64 bits for one request and one purpose."""
        text = f"{self._seed}:{ordinal}:{purpose}".encode()
        return int.from_bytes(blake2b(text, digest_size=8).digest())

    def hits(self, rate: float, ordinal: int, purpose: str) -> bool:
        """Whether the request belongs to the `rate` share."""
        return self.number(ordinal, purpose) < rate * 2**64

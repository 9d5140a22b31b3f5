"""One tree of errors; each edge (bus, API, CLI) translates it once."""

from __future__ import annotations


class OptiInfraError(Exception):
    """Base of every error that OptiInfra raises on purpose.

    `hint` says what to do about it, in one imperative sentence.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Rejected(OptiInfraError):
    """The caller's fault: repeating the same request fails again. Bus: dead letter. API: 4xx."""


class NotFound(Rejected):
    """What was named does not exist for this caller. API: 404."""


class Denied(Rejected):
    """The caller may not do this. API: 403, with an audit row."""


class Conflict(OptiInfraError):
    """The state has moved on: fetch it again and retry. API: 409 or 412."""


class Unavailable(OptiInfraError):
    """Something needed cannot be reached now. Bus: delayed nak. API: 503 with `Retry-After`."""

    def __init__(
        self, message: str, retry_after_s: float = 1.0, *, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class TooMany(Unavailable):
    """The caller tries too often. API: 429 with `Retry-After`."""


class Invariant(OptiInfraError):
    """A promise of our own is broken: a bug. Stop rather than go on."""

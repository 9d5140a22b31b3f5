"""What the broker's refusals mean in our own tree of errors."""

from __future__ import annotations

from nats.errors import BadHeaderError, BadSubjectError, Error, MaxPayloadError
from nats.js.errors import APIError, NoStreamResponseError

from optiinfra.schemas.errors import OptiInfraError, Rejected, Unavailable

CONSUMER_NOT_FOUND = 10014
STREAM_NOT_FOUND = 10059

BROKER_ERRORS = (Error, OSError, TimeoutError)
"""What a call to the broker may raise; the client's own errors, the socket's, and timeouts."""

_FULL = ("maximum bytes", "maximum messages", "insufficient", "resource")


def is_full(refused: APIError) -> bool:
    """Whether the broker has no room (a limit of the stream, of the account, or the disk)."""
    said = (refused.description or "").lower()
    return any(word in said for word in _FULL)


def is_passing(error: BaseException) -> bool:
    """Whether the same call may succeed in a moment: timeouts, a broker that is not ready yet."""
    if isinstance(error, OptiInfraError):
        return False
    if isinstance(error, APIError):
        return (error.code or 0) >= 500 and not is_full(error)
    return not isinstance(error, (BadHeaderError, BadSubjectError, MaxPayloadError))


def translated(error: BaseException, doing: str) -> OptiInfraError:
    """`error` as one of ours, saying what was being done."""
    if isinstance(error, OptiInfraError):
        return error
    if isinstance(error, APIError):
        return _of_api(error, doing)
    if isinstance(error, NoStreamResponseError):
        return Unavailable(
            f"{doing}: no stream answers", hint="create the streams: optiinfra topology apply"
        )
    if isinstance(error, (BadHeaderError, BadSubjectError, MaxPayloadError)):
        return Rejected(f"{doing}: {described(error)}")
    return Unavailable(f"{doing}: {described(error)}")


def _of_api(refused: APIError, doing: str) -> OptiInfraError:
    said = f"{doing}: {refused.description} (broker error {refused.err_code})"
    if is_full(refused):
        return Unavailable(
            said, 10.0, hint="free disk space, or raise the stream's limit and apply the topology"
        )
    if refused.err_code in (CONSUMER_NOT_FOUND, STREAM_NOT_FOUND):
        return Unavailable(said, hint="create the streams: optiinfra topology apply")
    if (refused.code or 0) >= 500:
        return Unavailable(said)
    return Rejected(said)


def described(error: BaseException) -> str:
    """The error's text, or its class when it has none."""
    return str(error) or type(error).__name__

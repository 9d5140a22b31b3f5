"""Which headers pass the gateway and which end at it (RFC 9110, 7.6.1)."""

from __future__ import annotations

import re

from multidict import CIMultiDict, CIMultiDictProxy

REQUEST_ID = "X-Request-Id"
SESSION_ID = "X-Session-Id"
DEPLOYMENT = "X-OptiInfra-Deployment"
STRATUM = "X-OptiInfra-Stratum"

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# The body has been read and unpacked, so that its length and coding are ours to state; answers
# are asked for unpacked so that they can be measured.
_REQUEST_ENDS_HERE = _HOP_BY_HOP | {
    "accept-encoding",
    "content-encoding",
    "content-length",
    "expect",
    "host",
    DEPLOYMENT.lower(),
    REQUEST_ID.lower(),
    STRATUM.lower(),
}
_ANSWER_ENDS_HERE = _HOP_BY_HOP | {REQUEST_ID.lower()}
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def upstream_headers(headers: CIMultiDictProxy[str], request_id: str) -> CIMultiDict[str]:
    """What the backend gets of a client's headers."""
    passed = _passed(headers, _REQUEST_ENDS_HERE)
    passed["Accept-Encoding"] = "identity"
    passed[REQUEST_ID] = request_id
    return passed


def answer_headers(headers: CIMultiDictProxy[str], request_id: str) -> CIMultiDict[str]:
    """What the client gets of a backend's headers."""
    passed = _passed(headers, _ANSWER_ENDS_HERE)
    passed[REQUEST_ID] = request_id
    return passed


def usable_request_id(value: str | None) -> str | None:
    """`value` if it may go into logs and headers: 1-128 visible ASCII characters."""
    return value if value is not None and _REQUEST_ID.fullmatch(value) else None


def _passed(headers: CIMultiDictProxy[str], ends_here: frozenset[str]) -> CIMultiDict[str]:
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if (lower := name.lower()) not in ends_here and lower not in named and _sendable(value)
    )


def _sendable(value: str) -> bool:
    """Whether the value survives being written again (bytes that are no UTF-8 do not)."""
    return value.isascii() or value.isprintable()

"""How a browser carries its session: cookies that no script reads, and no other site sends."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from fastapi import Response
from fastapi.requests import HTTPConnection

from optiinfra.portal_api.ports import ports_of
from optiinfra.schemas.errors import Denied
from optiinfra.storage.postgres.sessions import ACCESS_S, Pair

ACCESS = "optiinfra_session"
REFRESH = "optiinfra_refresh"
SESSION_PATH = "/api/v1/session"
"""The refresh token goes nowhere else."""
AGENT_LENGTH = 200
_SAFE = ("GET", "HEAD", "OPTIONS")


def set_session(response: Response, connection: HTTPConnection, pair: Pair) -> None:
    """The cookies of a session; `Lax`, so that a link into a page finds one signed in."""
    secure = not is_loopback(connection)
    response.set_cookie(
        ACCESS, pair.access, int(ACCESS_S), path="/", secure=secure, httponly=True, samesite="lax"
    )
    response.set_cookie(
        REFRESH,
        pair.refresh,
        int(pair.lasts_s),
        path=SESSION_PATH,
        secure=secure,
        httponly=True,
        samesite="strict",
    )


def clear_session(response: Response) -> None:
    """The browser forgets both."""
    response.delete_cookie(ACCESS, path="/", httponly=True)
    response.delete_cookie(REFRESH, path=SESSION_PATH, httponly=True)


def is_loopback(connection: HTTPConnection) -> bool:
    """Whether the browser speaks to its own machine; everywhere else cookies need TLS."""
    host = connection.url.hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_own_page(connection: HTTPConnection) -> bool | None:
    """Whether a page of ours (or of an allowed origin) asks; None when nothing says who does."""
    origin = connection.headers.get("origin")
    if origin is not None:
        own = urlsplit(origin).netloc == connection.headers.get("host")
        return own or origin in ports_of(connection).origins
    fetched = connection.headers.get("sec-fetch-site")
    return None if fetched is None else fetched == "same-origin"


def only_reads(connection: HTTPConnection) -> bool:
    """Whether the request changes nothing; a WebSocket has no method and counts as one that may."""
    return connection.scope.get("method") in _SAFE


def agent_of(connection: HTTPConnection) -> str | None:
    """What the browser or program calls itself, as far as it is text; its owner is shown it."""
    named = "".join(one for one in connection.headers.get("user-agent", "") if one.isprintable())
    return named[:AGENT_LENGTH] or None


def require_own_page(connection: HTTPConnection) -> None:
    """Another site must not act with the cookie that the browser adds by itself.

    Raises `Denied` unless the request only reads, or says that it comes from a page of ours.
    """
    if only_reads(connection) or is_own_page(connection):
        return
    raise Denied(
        "a session cookie counts only on requests from our own pages",
        hint="send `Origin`, or a bearer token in place of the cookie",
    )

"""Asks an engine itself whether it serves."""

from __future__ import annotations

import httpx

from optiinfra.schemas.deployment import Replica, ReplicaState

PROBE_TIMEOUT_S = 2.0


async def serves(http: httpx.AsyncClient, url: str | None) -> bool:
    """Whether `GET {url}/health` answers 200 within 2 s; anything else is not serving."""
    if url is None:
        return False
    try:
        answer = await http.get(f"{url.rstrip('/')}/health", timeout=PROBE_TIMEOUT_S)
    except (httpx.TransportError, httpx.InvalidURL):
        return False
    return answer.status_code == httpx.codes.OK


async def probed(http: httpx.AsyncClient, replica: Replica, *, young: bool) -> Replica:
    """`replica` of a machine that runs, in the state that its engine reports.

    Without an answer it is starting while `young`, and unknown after that.
    """
    if await serves(http, replica.url):
        state = ReplicaState.SERVING
    else:
        state = ReplicaState.STARTING if young else ReplicaState.UNKNOWN
    return replica.model_copy(update={"state": state})

"""RFC 9457 problem documents: the one place where errors become answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from optiinfra.portal_api.denials import note_denial
from optiinfra.schemas.errors import (
    Conflict,
    Denied,
    Invariant,
    NotFound,
    OptiInfraError,
    Rejected,
    TooMany,
    Unavailable,
)
from optiinfra.storage.postgres.decisions import Stale

MEDIA_TYPE = "application/problem+json"


class SignInNeeded(Denied):
    """Nobody is signed in, or not any more. API: 401."""


class PreconditionNeeded(Rejected):
    """A decision must name the version that it was made on. API: 428."""


class Problem(BaseModel):
    """What every error of this API looks like."""

    type: str = Field(description="a URN that names the kind of problem")
    title: str
    status: int
    detail: str
    hint: str | None = Field(default=None, description="what to do about it")
    instance: str
    request_id: str


STATUS_OF: tuple[tuple[type[OptiInfraError], HTTPStatus], ...] = (
    (SignInNeeded, HTTPStatus.UNAUTHORIZED),
    (PreconditionNeeded, HTTPStatus.PRECONDITION_REQUIRED),
    (NotFound, HTTPStatus.NOT_FOUND),
    (Denied, HTTPStatus.FORBIDDEN),
    (Rejected, HTTPStatus.BAD_REQUEST),
    (Stale, HTTPStatus.PRECONDITION_FAILED),
    (Conflict, HTTPStatus.CONFLICT),
    (TooMany, HTTPStatus.TOO_MANY_REQUESTS),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (Invariant, HTTPStatus.INTERNAL_SERVER_ERROR),
)
"""The first class that fits gives the status."""


def problem(
    scope: Mapping[str, Any],
    status: HTTPStatus,
    detail: str,
    *,
    hint: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A problem as the answer to the request of this ASGI scope."""
    content = Problem(
        type=f"urn:optiinfra:problem:{status.phrase.lower().replace(' ', '-')}",
        title=status.phrase,
        status=status,
        detail=detail,
        hint=hint,
        instance=scope["path"],
        request_id=scope.get("state", {}).get("request_id", ""),
    )
    return JSONResponse(
        content.model_dump(exclude_none=True), status, dict(headers or {}), media_type=MEDIA_TYPE
    )


async def _of_ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OptiInfraError)
    if isinstance(error, Denied) and not isinstance(error, SignInNeeded):
        error = await _audited(request, error)
    status = next(status for kind, status in STATUS_OF if isinstance(error, kind))
    headers = {}
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="optiinfra"'
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return problem(request.scope, status, error.message, hint=error.hint, headers=headers)


async def _audited(request: Request, denied: Denied) -> OptiInfraError:
    """The denial once it is written down, else why it could not be."""
    try:
        await note_denial(request, denied.message)
    except Unavailable as away:
        return away
    return denied


async def _of_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    lines = [
        f"{'.'.join(str(part) for part in found['loc'])}: {found['msg']}"
        for found in error.errors()
    ]
    return problem(request.scope, HTTPStatus.BAD_REQUEST, "; ".join(lines))


async def _of_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    detail = f"there is no {request.url.path}" if status == 404 else str(error.detail)
    return problem(request.scope, status, detail, headers=error.headers)


def install(app: FastAPI) -> None:
    """Every error that a route can raise becomes a problem; what is left is the edge's."""
    app.add_exception_handler(OptiInfraError, _of_ours)
    app.add_exception_handler(RequestValidationError, _of_request)
    app.add_exception_handler(HTTPException, _of_http)

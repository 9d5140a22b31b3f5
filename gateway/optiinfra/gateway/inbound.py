"""Reads a client's request: what it asks for, of which model, in which session."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from aiohttp import web
from multidict import CIMultiDictProxy
from pydantic_core import from_json

from optiinfra.gateway.headers import DEPLOYMENT, SESSION_ID, STRATUM
from optiinfra.gateway.refusal import refuse
from optiinfra.schemas.sampling import MAX_STRATUM_CHARS

PREFIX = "/v1/"
GENERATION_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""What answers with text that can be sampled."""
MAX_UNIT_CHARS = 200


@dataclass(frozen=True, slots=True)
class Inbound:
    """One request, wholly received."""

    request_id: str
    method: str
    target: str
    """Path and query, as sent."""
    headers: CIMultiDictProxy[str]
    body: bytes
    fields: dict[str, Any]
    """The JSON body; empty when it is none."""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def deployment(self) -> str | None:
        """The deployment that the client names outright."""
        return self.headers.get(DEPLOYMENT)

    @property
    def model(self) -> str:
        """The model asked for; refuses a request that names none."""
        model = self.fields.get("model")
        if isinstance(model, str) and model:
            return model
        raise refuse(
            400,
            "model_missing",
            f"name a model: the JSON body needs a non-empty string 'model' "
            f"(or send the header {DEPLOYMENT})",
            "model",
        )

    @property
    def unit(self) -> str:
        """The session that stays with one backend: header, user, cache key, else this request."""
        named = (self.headers.get(SESSION_ID), *map(self.fields.get, ("user", "prompt_cache_key")))
        for value in named:
            if isinstance(value, str) and value:
                return _bounded(value)
        return self.request_id

    @property
    def stratum(self) -> str:
        """The kind of work that the client names for the quality test; empty for none, or for
        one that is no short printable text."""
        named = self.headers.get(STRATUM, "")
        return named if len(named) <= MAX_STRATUM_CHARS and named.isprintable() else ""


async def read_inbound(
    request: web.BaseRequest, request_id: str, *, limit_bytes: int, timeout_s: float
) -> Inbound:
    """Receive the whole request; refuses bad targets, bodies too large, too slow or no JSON."""
    target = _checked_target(request.raw_path)
    body = await _body(request, limit_bytes, timeout_s)
    fields: dict[str, Any] = {}
    if body and request.content_type == "application/json":
        fields = _json_object(body)
    return Inbound(request_id, request.method, target, request.headers, body, fields)


def prompt_text(fields: dict[str, Any]) -> str | None:
    """The prompt as one text: a lone message bare, several as `role: text` paragraphs."""
    prompt = fields.get("prompt", fields.get("input"))
    if isinstance(prompt, str):
        return prompt
    messages = fields.get("messages", prompt)
    if not isinstance(messages, list):
        return None
    said = [
        (str(message.get("role", "")), _content_text(message.get("content")))
        for message in messages
        if isinstance(message, dict)
    ]
    if len(said) == 1:
        return said[0][1]
    return "\n\n".join(f"{role}: {text}" for role, text in said) if said else None


def _content_text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))


def _checked_target(target: str) -> str:
    path = target.partition("?")[0]
    segments = path.lower().replace("%2e", ".").replace("%2f", "/").split("/")
    if not path.startswith(PREFIX) or ".." in segments:
        raise refuse(404, "not_found", "unknown path: this gateway serves /v1/* only")
    return target


async def _body(request: web.BaseRequest, limit_bytes: int, timeout_s: float) -> bytes:
    too_large = refuse(413, "body_too_large", f"the body exceeds {limit_bytes} bytes")
    if (request.content_length or 0) > limit_bytes:
        raise too_large
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    try:
        async with asyncio.timeout(timeout_s):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None
    except TimeoutError:
        raise refuse(408, "body_timeout", f"the body did not arrive in {timeout_s:g} s") from None
    except web.RequestPayloadError as error:
        raise refuse(400, "body_unreadable", f"the body cannot be read: {error}") from error


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = from_json(body)
    except ValueError as error:
        raise refuse(400, "json_invalid", f"the body is no valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise refuse(400, "json_invalid", "the body must be a JSON object")
    return value


def _bounded(value: str) -> str:
    if len(value) <= MAX_UNIT_CHARS and value.isprintable():
        return value
    return blake2b(value.encode(errors="surrogatepass"), digest_size=16).hexdigest()

"""The web pages: files that were built once, served beside the API with a strict policy."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

BUILT = Path(__file__).with_name("pages")
INDEX = "index.html"
ASSETS = "assets/"
"""The names below it hold a hash of what is in the file, so they never change."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; font-src 'self'; manifest-src 'self'; form-action 'none';"
    " frame-ancestors 'none'; base-uri 'none'"
)
_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"
_NOT_OURS = ("api/", "healthz", "readyz")
_SMALL_BYTES = 1_000


@dataclass(frozen=True)
class PageFile:
    """One built file, read once."""

    name: str
    body: bytes

    @cached_property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.body).hexdigest()[:24]}"'

    @cached_property
    def compressed(self) -> bytes:
        """Compressed when it is first asked for, so that a start costs nothing."""
        return gzip.compress(self.body, mtime=0)

    @property
    def media_type(self) -> str:
        return mimetypes.guess_type(self.name)[0] or "application/octet-stream"

    def headers(self) -> dict[str, str]:
        return {
            "ETag": self.etag,
            "Vary": "Accept-Encoding",
            "Cache-Control": _FOR_EVER if self.name.startswith(ASSETS) else _ASK_AGAIN,
            "Content-Security-Policy": POLICY,
        }


class Pages:
    """An ASGI app for what no route takes; `otherwise` answers what is no page either.

    Each address of the pages gives the same document, whose script reads the address.
    """

    def __init__(self, otherwise: ASGIApp, folder: Path = BUILT) -> None:
        self._otherwise = otherwise
        self._files = {
            name: PageFile(name, path.read_bytes())
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not (name := path.relative_to(folder).as_posix()).startswith(".")
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._found(scope) if scope["type"] == "http" else None
        if found is None:
            await self._otherwise(scope, receive, send)
            return
        if scope["method"] not in {"GET", "HEAD"}:
            raise HTTPException(405, "a page can only be read", {"Allow": "GET, HEAD"})
        await _answer(found, Headers(scope=scope))(scope, receive, send)

    def _found(self, scope: Scope) -> PageFile | None:
        name = scope["path"].lstrip("/")
        if f"{name}/".startswith(_NOT_OURS):
            return None
        if name in self._files or name.startswith(ASSETS):
            return self._files.get(name)
        return self._files.get(INDEX)


def _answer(found: PageFile, asked: Headers) -> Response:
    headers = found.headers()
    if asked.get("if-none-match") == found.etag:
        return Response(status_code=304, headers=headers)
    body = found.body
    if len(body) > _SMALL_BYTES and "gzip" in asked.get("accept-encoding", ""):
        body, headers["Content-Encoding"] = found.compressed, "gzip"
    return Response(body, headers=headers, media_type=found.media_type)

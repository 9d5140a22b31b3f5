"""Pages by cursor: an opaque text that names the last row seen, never an offset."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query, Request, Response
from pydantic import BaseModel, Field

from optiinfra.schemas.errors import Rejected
from optiinfra.storage.postgres.documents import Document
from optiinfra.storage.postgres.queries import Row
from optiinfra.storage.postgres.reading import Page

MAX_LIMIT = 200
DEFAULT_LIMIT = 50

T = TypeVar("T", bound=BaseModel)


class PageOf(BaseModel, Generic[T]):
    """One page; `next` is the address of the page after it, absent on the last one."""

    items: list[T]
    next: str | None = Field(default=None, description="path and query of the next page")


class Paging:
    """What a caller asked for; one row more is read, to know whether there is a next page."""

    def __init__(self, request: Request, limit: int, cursor: str | None) -> None:
        self._request = request
        self.limit = limit
        self.after = decode_cursor(cursor) if cursor else None

    def page(self, *kinds: type) -> Page:
        """The page to read; `kinds` are the types of the sort key. Raises `Rejected`."""
        return Page(self.limit + 1, _typed(self.after, kinds) if self.after is not None else None)

    def of(self, rows: Sequence[Row], view: Callable[[Row], T], key: tuple[str, ...]) -> PageOf[T]:
        """The rows as shown, with the link to what follows the last of them."""
        shown = rows[: self.limit]
        last = [shown[-1][name] for name in key] if len(rows) > self.limit else None
        return PageOf[T](items=[view(row) for row in shown], next=self.following(last))

    def page_of(self, documents: Sequence[Document], response: Response) -> Response:
        """The same of documents, written as they are, with the headers of `response`."""
        last = documents[self.limit - 1].key if len(documents) > self.limit else None
        return page_answer(documents[: self.limit], response, self.following(last))

    def following(self, last: Sequence[Any] | None) -> str | None:
        """The address of what comes after the sort key `last`."""
        if last is None:
            return None
        url = self._request.url.include_query_params(cursor=encode_cursor(last))
        return f"{url.path}?{url.query}"


def page_answer(
    documents: Sequence[Document], response: Response, following: str | None = None
) -> Response:
    """A `PageOf` what the documents are."""
    items = ",".join([document.text for document in documents])
    return json_answer(f'{{"items":[{items}],"next":{json.dumps(following)}}}', response)


def json_answer(text: str, response: Response) -> Response:
    """JSON that is text already, with the headers that dependencies set on `response`."""
    answer = Response(text, media_type="application/json")
    answer.raw_headers.extend(response.raw_headers)
    return answer


async def _paging(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    cursor: Annotated[str | None, Query(max_length=400)] = None,
) -> Paging:
    return Paging(request, limit, cursor)


Paged = Annotated[Paging, Depends(_paging)]


def encode_cursor(key: Sequence[Any]) -> str:
    """A sort key (texts, whole numbers, times) as URL-safe text."""
    parts = [part.isoformat() if isinstance(part, datetime) else part for part in key]
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> list[Any]:
    """The parts of a sort key. Raises `Rejected` when it is none of ours."""
    try:
        parts = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, RecursionError) as broken:
        raise _not_ours() from broken
    if not isinstance(parts, list):
        raise _not_ours()
    return parts


def _typed(parts: list[Any], kinds: tuple[type, ...]) -> tuple[Any, ...]:
    if len(parts) != len(kinds):
        raise _not_ours()
    try:
        made = tuple(
            datetime.fromisoformat(part) if kind is datetime else part
            for part, kind in zip(parts, kinds, strict=True)
        )
    except (TypeError, ValueError) as broken:
        raise _not_ours() from broken
    if not all(_fits(part, kind) for part, kind in zip(made, kinds, strict=True)):
        raise _not_ours()
    return made


def _fits(part: Any, kind: type) -> bool:
    if isinstance(part, datetime):
        return part.tzinfo is not None
    if kind is int:
        return type(part) is int and 0 <= part < 1 << 63
    return isinstance(part, str) and "\x00" not in part


def _not_ours() -> Rejected:
    return Rejected("the cursor is not one of ours", hint="follow the `next` link of a page")

"""Several statements in one round trip: each becomes a part of one `WITH`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import asyncpg

from optiinfra.storage.postgres.database import Connection

_PARAMETER = re.compile(r"\$(\d+)")


@dataclass(frozen=True, slots=True)
class Part:
    """A statement over columns (arrays of equal length), its parameters numbered from 1.

    Parts of one call see the tables as they were before, and not one another's rows: no row may
    be touched by two of them.
    """

    name: str
    text: str
    columns: Sequence[Sequence[object]]


def columns(rows: Iterable[Sequence[object]], width: int) -> list[list[object]]:
    """Rows turned into `width` columns."""
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(width)]


async def run_together(
    connection: Connection, parts: Sequence[Part], answer: str = "SELECT 1"
) -> asyncpg.Record | None:
    """Runs all parts at once; the row of `answer`, which may name the parts that return rows.

    Give the same parts in the same order each time, empty ones too: every other shape is another
    statement, which the server has to plan first, and that takes longer than a batch.
    """
    shape = tuple((part.name, part.text, len(part.columns)) for part in parts)
    arguments: list[Any] = [column for part in parts for column in part.columns]
    return await connection.fetchrow(_joined(shape, answer), *arguments)


@lru_cache(maxsize=16)
def _joined(shape: tuple[tuple[str, str, int], ...], answer: str) -> str:
    """The whole statement, which the server keeps prepared."""
    offset, texts = 0, []
    for name, text, width in shape:
        texts.append(f"{name} AS ({_shifted(text, offset)})")
        offset += width
    return f"WITH {', '.join(texts)} {answer}"


def _shifted(text: str, offset: int) -> str:
    return _PARAMETER.sub(lambda found: f"${int(found[1]) + offset}", text)

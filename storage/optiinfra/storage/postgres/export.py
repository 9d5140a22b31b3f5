"""The event log and the audit trail as lines of JSON that prove themselves without a database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optiinfra.schemas.errors import Rejected
from optiinfra.storage.postgres.chain import Break, Walker
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.events import LINK_COLUMNS

CHUNK = 1_000
FORMAT = "optiinfra.audit.v1"
_COLUMNS = [name.strip() for name in LINK_COLUMNS.split(",")] + ["position"]
_TIMES = ("at", "said_at")


@dataclass(frozen=True, slots=True)
class Range:
    """What is exported: a tenant, and times at which events were taken in (None: any).

    Whole chains only: one that has an event in the range is exported from its beginning.
    """

    tenant: str
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """What a file holds, and where it does not hold."""

    events: int
    audit_rows: int
    chains: int
    breaks: tuple[Break, ...]
    whole: bool
    """Whether the file is the one that was written: its digest fits."""

    @property
    def ok(self) -> bool:
        return self.whole and not self.breaks


async def exported(database: Database, wanted: Range) -> AsyncIterator[str]:
    """Lines: events chain by chain, audit rows, and a last line that counts and seals them.

    Read as of one moment. Raises `Unavailable` without server.
    """
    digest, counts = hashlib.sha256(), {"event": 0, "audit": 0}

    def line(kind: str, content: dict[str, Any]) -> str:
        made = json.dumps({"line": kind, **content}, ensure_ascii=False) + "\n"
        digest.update(made.encode())
        counts[kind] += 1
        return made

    arguments = (wanted.tenant, wanted.since, wanted.until)
    async with (
        database.connection() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        for kind, query in (("event", _EVENTS), ("audit", _AUDIT)):
            cursor = await connection.cursor(query, *arguments)
            while rows := await cursor.fetch(CHUNK):
                for row in rows:
                    yield line(kind, _plain(dict(row)))
        at = await connection.fetchval("SELECT now()")
    manifest = {
        "line": "manifest",
        "format": FORMAT,
        "tenant": wanted.tenant,
        "since": wanted.since.isoformat() if wanted.since else None,
        "until": wanted.until.isoformat() if wanted.until else None,
        "exported_at": at.isoformat(),
        "events": counts["event"],
        "audit_rows": counts["audit"],
        "sha256": digest.hexdigest(),
    }
    yield json.dumps(manifest) + "\n"


def checked(lines: Iterable[bytes]) -> Checked:
    """Walks an exported file. Raises `Rejected` when it is no such file."""
    walker, digest = Walker(), hashlib.sha256()
    counts = {"event": 0, "audit": 0}
    manifest: dict[str, Any] | None = None
    for content, raw in _read(lines):
        if manifest is not None:
            raise Rejected("there is something after the last line of the export")
        if content["line"] == "manifest":
            manifest = content
            continue
        digest.update(raw)
        counts[content["line"]] += 1
        if content["line"] == "event":
            walker.walk([_row(content)])
            walker.ends.clear()
    walker.finish()
    if manifest is None:
        raise Rejected("the file ends before its last line", hint="export it again")
    whole = (
        manifest.get("sha256") == digest.hexdigest()
        and manifest.get("events") == counts["event"]
        and manifest.get("audit_rows") == counts["audit"]
    )
    return Checked(counts["event"], counts["audit"], walker.chains, tuple(walker.breaks), whole)


def _read(lines: Iterable[bytes]) -> Iterator[tuple[dict[str, Any], bytes]]:
    for number, raw in enumerate(lines, 1):
        try:
            content = json.loads(raw)
            if content["line"] not in ("event", "audit", "manifest"):
                raise KeyError(content["line"])
        except (ValueError, KeyError, TypeError) as bad:
            raise Rejected(f"line {number} is no line of an export: {bad}") from bad
        yield content, raw


def _row(content: dict[str, Any]) -> list[Any]:
    try:
        return [
            datetime.fromisoformat(content[name]) if name in _TIMES else content[name]
            for name in _COLUMNS
        ]
    except (KeyError, ValueError, TypeError) as bad:
        raise Rejected(f"an event of the export cannot be read: {bad!r}") from bad


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in row.items()
    }


_EVENTS = f"""
SELECT {LINK_COLUMNS}, position FROM event_log WHERE tenant = $1 AND chain IN (
    SELECT chain FROM event_log WHERE tenant = $1
    AND ($2::timestamptz IS NULL OR at >= $2) AND ($3::timestamptz IS NULL OR at < $3)
) ORDER BY chain, version
"""  # noqa: S608 - constants
_AUDIT = """
SELECT position, tenant, at, actor, action, target, allowed, detail::text AS detail FROM audit
WHERE tenant = $1
AND ($2::timestamptz IS NULL OR at >= $2) AND ($3::timestamptz IS NULL OR at < $3)
ORDER BY position
"""

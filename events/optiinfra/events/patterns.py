"""What a subscriber asks for, as subject filters of one stream."""

from __future__ import annotations

from collections.abc import Iterable

from optiinfra.events.subjects import SUBJECTS, Stream, Subject
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import token

_REST = ">"
_ONE = "*"


def filters_for(subjects: Iterable[str], tenant: str | None) -> tuple[Stream, tuple[str, ...]]:
    """The stream that holds `subjects`, and the filters that select them there.

    A subject is a prefix (`change`, `change.*`, `vote.cast`) or a whole pattern with wildcards
    (`change.completed.acme.*`, `change.>`); `tenant` narrows each to one tenant. Raises
    `Rejected` when nothing matches, when it is not kept, or when it lies in several streams.
    """
    owner = token(tenant) if tenant is not None else _ONE
    asked = list(subjects)
    found: dict[str, Subject] = {}
    for subject in asked:
        matches = {
            filtered: row for row in SUBJECTS if (filtered := _narrowed(row, subject, owner))
        }
        if not matches:
            raise Rejected(f"there is no subject {subject!r}", hint=f"known are: {_known()}")
        found |= matches
    streams = {row.stream for row in found.values()}
    stream = streams.pop() if len(streams) == 1 else None
    if stream is None:
        raise Rejected(
            f"{', '.join(asked)} lie in {_listed({row.stream for row in found.values()})}",
            hint="subscribe to the subjects of one stream at a time",
        )
    return stream, _without_overlap(found)


def _narrowed(row: Subject, subject: str, owner: str) -> str | None:
    whole = [*row.prefix.split("."), owner, *(_ONE for _ in row.tokens)]
    asked = subject.split(".")
    if _REST not in asked and len(asked) < len(whole):
        asked.append(_REST)
    common = _intersection(whole, asked)
    return ".".join(common) if common is not None else None


def _intersection(whole: list[str], asked: list[str]) -> list[str] | None:
    common: list[str] = []
    for index, mine in enumerate(whole):
        theirs = asked[index] if index < len(asked) else None
        if theirs == _REST:
            return common + whole[index:]
        if theirs is None or (mine != theirs and _ONE not in (mine, theirs)):
            return None
        common.append(theirs if mine == _ONE else mine)
    return common if len(asked) == len(whole) else None


def _without_overlap(found: dict[str, Subject]) -> tuple[str, ...]:
    """The broker refuses filters of which one covers another."""
    return tuple(
        one
        for one in found
        if not any(
            other != one and _intersection(one.split("."), other.split(".")) == one.split(".")
            for other in found
        )
    )


def _known() -> str:
    return ", ".join(dict.fromkeys(row.prefix for row in SUBJECTS if row.stream is not None))


def _listed(streams: Iterable[Stream | None]) -> str:
    return " and ".join(sorted(stream.value if stream else "no stream" for stream in streams))

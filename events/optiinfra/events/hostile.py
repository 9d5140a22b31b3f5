"""What pydantic lets through and no store can keep: endless numbers, NUL, times out of bounds."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from typing import TypeVar

from optiinfra.schemas.errors import Rejected

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST = datetime(2200, 1, 1, tzinfo=UTC)
"""Wide enough for every wrong clock that is a mistake; beyond, stores and `astimezone` overflow."""
LARGEST = (1 << 63) - 1
HEADER_LIMIT = 200

Header = TypeVar("Header", str, str | None)
_HEADER = re.compile(rf"[!-~]{{1,{HEADER_LIMIT}}}")
_SAME_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
_LONG = b"0" * 19
_POWER = re.compile(rb"[:,\[\s]-?[0.]+e000")
"""A number of that kind, and no name of hexadecimal digits: nothing of those stands before it."""


def require_header(name: str, value: Header) -> Header:
    """Printable ASCII without blanks, or nothing. Raises `Rejected` naming the header."""
    if value is not None and not _HEADER.fullmatch(value):
        raise Rejected(f"the header {name} is not printable ASCII of 1-{HEADER_LIMIT} characters")
    return value


def require_time(name: str, value: str) -> datetime:
    """The time in an envelope. Raises `Rejected` for no time, or one that nobody's clock shows."""
    try:
        time = datetime.fromisoformat(value)
    except ValueError as invalid:
        raise Rejected(f"{name} is not a time: {value[:64]!r}") from invalid
    if time.tzinfo is None:
        raise Rejected(f"{name} has no time zone: {value[:64]!r}")
    if not EARLIEST <= time < LATEST:
        raise Rejected(f"{name} is out of bounds: {value[:64]!r}")
    return time


def require_keepable(body: bytes) -> None:
    """Raises `Rejected` for a body (valid JSON) with a value that cannot be kept and read back.

    Only what looks suspicious is read a second time.
    """
    if _is_suspicious(body):
        _walk(json.loads(body))


def _is_suspicious(body: bytes) -> bool:
    """Whether it may hold NUL, an endless number, 19 digits in a row or an exponent over 99."""
    digits = body.translate(_SAME_DIGITS, b"+")
    # One letter is found several times faster than a word: most bodies hold none of the three.
    return (
        _LONG in digits
        or (b"0e000" in digits and _POWER.search(digits) is not None)
        or (b"\\" in body and b"\\u0000" in body)
        or (b"N" in body and b"NaN" in body)
        or (b"I" in body and b"Infinity" in body)
    )


def _walk(value: object) -> None:
    match value:
        case dict():
            for key, one in value.items():
                _walk(key)
                _walk(one)
        case list():
            for one in value:
                _walk(one)
        case str() if "\x00" in value:
            raise Rejected("the body holds a NUL character")
        case float() if not math.isfinite(value):
            raise Rejected("the body holds a number that is not finite")
        case int() if abs(value) > LARGEST:
            raise Rejected("the body holds an integer of more than 64 bits")
        case _:
            pass

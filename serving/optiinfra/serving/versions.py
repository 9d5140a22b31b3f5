"""Versions of engines as they write them, made comparable."""

from __future__ import annotations

import re

from optiinfra.schemas.errors import NotFound

_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")

Version = tuple[int, int, int]


def parse_version(text: str | None) -> Version | None:
    """(major, minor, patch) of a version such as `0.6.6.post1` or `v0.33`; None if it is none."""
    match = _VERSION.match(text or "")
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def version_of(text: str) -> Version:
    """As `parse_version`, for versions that must be valid. Raises `NotFound`."""
    version = parse_version(text)
    if version is None:
        raise NotFound(f"{text!r} is not a version", hint="write it like 0.10.2")
    return version


def within(version: Version, since: str | None, until: str | None) -> bool:
    """Whether `version` lies in [since, until); a bound that is None is open."""
    return (since is None or version >= version_of(since)) and (
        until is None or version < version_of(until)
    )

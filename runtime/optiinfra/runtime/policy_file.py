"""Reads the policy file, checks that it fits the fleet, and notices when it changes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from optiinfra.coordinator.policy_choice import PolicyOnFile
from optiinfra.runtime.yaml_file import FileKind, content_of, wrong
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.policy_review import undeclared
from optiinfra.schemas.rules import Rules

POLICY_FILE = FileKind("policy file", Rules, "docs/policy.md", needs="name")
SETTLE_S = 0.2
"""How long a changed file must stand unchanged: one that is being written is no policy yet."""


def load_policy(path: Path) -> Rules:
    """Reads and checks the file; what it does not say is as the defaults are.

    Raises `Rejected` naming each bad key and what to do.
    """
    try:
        return Rules.model_validate(content_of(path, POLICY_FILE))
    except ValidationError as invalid:
        raise wrong(path, POLICY_FILE, invalid) from invalid


def require_deployments(rules: Rules, known: Collection[str], path: Path) -> None:
    """Raises `Rejected` when a part of the policy is about a deployment that nobody declares."""
    for wrong_name in undeclared(rules, known):
        raise Rejected(
            f"{path}: {wrong_name}",
            hint="correct the name, or declare it under `deployments` of the fleet file",
        )


class WatchedFile:
    """A file that holds a policy; `read` gives it and raises `Rejected` for a wrong one.

    `settle` waits a moment; it runs beside the event loop.
    """

    def __init__(
        self,
        path: Path,
        read: Callable[[Path], Rules],
        settle: Callable[[], None] = lambda: time.sleep(SETTLE_S),
    ) -> None:
        self._path = path
        self._read = read
        self._settle = settle
        self._seen = b""
        self._last: PolicyOnFile | None = None

    def first(self) -> PolicyOnFile:
        """What it says at a start; at a later one what it said last, if it is wrong by then.

        Raises `Rejected`.
        """
        self._seen = self._digest()
        try:
            return self._on_file(edited=False)
        except Rejected:
            if self._last is None:
                raise
            self._seen = b""
            return self._last

    def look(self) -> PolicyOnFile | None:
        """What it says, if its bytes have changed since the last look and stand still now.

        Raises `Rejected` once.
        """
        digest = self._digest()
        if digest == self._seen:
            return None
        self._settle()
        if digest != self._digest():
            return None
        self._seen = digest
        return self._on_file(edited=True)

    def _digest(self) -> bytes:
        """Of a file that cannot be read: a word that no file has as its digest."""
        try:
            return hashlib.sha256(self._path.read_bytes()).digest()
        except OSError:
            return b"unreadable"

    def _on_file(self, *, edited: bool) -> PolicyOnFile:
        rules = self._read(self._path)
        try:
            written_at = datetime.fromtimestamp(self._path.stat().st_mtime, tz=UTC)
        except OSError as gone:
            raise Rejected(f"{self._path} has gone: {gone}", hint="put it back") from gone
        found = PolicyOnFile(rules, written_at, f"file:{self._path.name}", edited)
        self._last = replace(found, edited=False)
        return found

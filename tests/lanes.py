"""Which tests run side by side."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

WHOLE_STACKS = ("tests/faults/", "tests/e2e/")
"""They start everything and wait for it by the clock: never two of them at once."""


class Lanes(LoadScopeScheduling):  # type: ignore[misc] # xdist carries no types
    """One lane takes the whole stacks, which are most, the others take file by file."""

    def _split_scope(self, nodeid: str) -> str:
        """What a test belongs to, and stays together with in their order."""
        return "whole stacks" if nodeid.startswith(WHOLE_STACKS) else nodeid.partition("::")[0]

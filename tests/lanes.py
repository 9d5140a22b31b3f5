"""Which tests run side by side."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

WHOLE_STACKS = ("tests/faults/", "tests/e2e/")
"""They start everything and wait for it by the clock: in each folder one after the other."""


class Lanes(LoadScopeScheduling):  # type: ignore[misc] # xdist carries no types
    """A lane takes a folder of whole stacks or a file at a time, those of most tests first."""

    def _split_scope(self, nodeid: str) -> str:
        """What a test belongs to, and stays together with in their order."""
        folder = next((one for one in WHOLE_STACKS if nodeid.startswith(one)), None)
        return folder or nodeid.partition("::")[0]

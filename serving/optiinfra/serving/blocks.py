"""KV blocks of one replica: who holds how many, and which hold a known prefix."""

from __future__ import annotations

from collections.abc import Sequence

from optiinfra.schemas.errors import Invariant


class BlockPool:
    """Counts KV blocks and remembers full ones by content hash, as vLLM's block pool does.

    A hash is chained: it stands for its block and all blocks before it. Hashed blocks that nobody
    holds stay cached until room is needed, least recently used first; blocks without a hash are
    taken before any cached one is given up.
    """

    __slots__ = ("_holders", "_idle", "_plain_free", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self._plain_free = total
        self._holders: dict[int, int] = {}
        self._idle: dict[int, None] = {}

    @property
    def free(self) -> int:
        """Blocks that can be taken now, cached ones included."""
        return self._plain_free + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks held by requests."""
        return self.total - self.free

    @property
    def usage_fraction(self) -> float:
        """Held blocks as a fraction of all, 0 to 1."""
        return self.used / self.total

    def cached_prefix(self, hashes: Sequence[int]) -> int:
        """How many blocks at the head of `hashes` are here."""
        for position, value in enumerate(hashes):
            if value not in self._holders and value not in self._idle:
                return position
        return len(hashes)

    def idle_among(self, hashes: Sequence[int]) -> int:
        """How many of these cached blocks nobody holds: holding them uses up free ones."""
        return sum(1 for value in hashes if value in self._idle)

    def hold(self, hashes: Sequence[int]) -> None:
        """Hold cached blocks once more each."""
        for value in hashes:
            self._idle.pop(value, None)
            self._holders[value] = self._holders.get(value, 0) + 1

    def take(self, count: int) -> None:
        """Take blocks without content; the caller has checked `free`."""
        if count > self.free:
            raise Invariant(f"{count} KV blocks taken of {self.free} free")
        from_plain = min(count, self._plain_free)
        self._plain_free -= from_plain
        for value in list(self._idle)[: count - from_plain] if count > from_plain else ():
            del self._idle[value]

    def fill(self, value: int) -> bool:
        """Give one taken block its hash; False when the content is cached already."""
        if value in self._holders or value in self._idle:
            return False
        self._holders[value] = 1
        return True

    def release(self, hashes: Sequence[int], plain: int) -> None:
        """Let go of held blocks; the tail of a prefix becomes the first to be evicted."""
        self._plain_free += plain
        for value in reversed(hashes):
            self._holders[value] -= 1
            if not self._holders[value]:
                del self._holders[value]
                self._idle[value] = None

    def forget_idle(self) -> None:
        """Drop every cached block that nobody holds."""
        self._plain_free += len(self._idle)
        self._idle.clear()

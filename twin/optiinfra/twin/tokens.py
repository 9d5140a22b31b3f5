"""The emulator's tokenizer: lossless word pieces, about four characters each in English text."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PIECE = re.compile(r" ?\w{1,8}| ?[^\w\s]|\s")


def tokenise(text: str) -> list[str]:
    """Pieces of at most eight word characters, one mark, or one space; joined they are `text`."""
    return _PIECE.findall(text)


def block_hashes(tokens: Sequence[str], block_size: int) -> list[int]:
    """Chained hashes of every full block, equal for equal prefixes within one process."""
    hashes: list[int] = []
    previous = 0
    for end in range(block_size, len(tokens) + 1, block_size):
        previous = hash((previous, tuple(tokens[end - block_size : end])))
        hashes.append(previous)
    return hashes

"""Prompts as long as the trace says, with a question whose answer stands in their context."""

from __future__ import annotations

import random
from collections.abc import Sequence

from optiinfra.agents.application.golden import GoldenItem, load_golden
from optiinfra.twin.tokens import tokenise

_FRAME_TOKENS = 8
"""`Context:`, `Question:` and `Answer:` with their marks."""


class PromptBook:
    """Writes prompts from the shipped questions; the n-th prompt of a seed is always the same."""

    def __init__(self, seed: int, items: Sequence[GoldenItem] | None = None) -> None:
        found = load_golden().items if items is None else items
        self._items = [item for item in found if item.context]
        self._tokens = [len(tokenise(item.context or "")) for item in self._items]
        self._questions = [_question(item) for item in self._items]
        self._seed = seed

    def prompt(self, number: int, tokens: int) -> str:
        """A prompt of about `tokens` tokens: a context, padded with others, and its question."""
        draw = random.Random(f"{self._seed}:{number}")
        first = draw.randrange(len(self._items))
        chosen = [first]
        size = _FRAME_TOKENS + self._tokens[first] + len(tokenise(self._questions[first]))
        while size < tokens:
            more = draw.randrange(len(self._items))
            if size + self._tokens[more] / 2 > tokens:
                break
            chosen.append(more)
            size += self._tokens[more]
        draw.shuffle(chosen)
        context = " ".join(self._items[at].context or "" for at in chosen)
        return f"Context: {context}\nQuestion: {self._questions[first]}\nAnswer:"


def _question(item: GoldenItem) -> str:
    """The question of a golden prompt, which stands between its marks."""
    return item.prompt.rpartition("Question:")[2].rpartition("Answer:")[0].strip()

"""A small extractive answerer, so that an emulated replica's answers can be right or wrong."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from math import log

from optiinfra.twin.tokens import tokenise

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[a-z0-9)\"'][.!?])(?=[A-Z])|\n+")
_WORD = re.compile(r"[^\W_]+")
_QUESTION = re.compile(r"question\s*:", re.IGNORECASE)
_CONTEXT = re.compile(r"context\s*:", re.IGNORECASE)
_QUESTION_END = re.compile(r"\n\s*answer\s*:|\n|\s+answer\s*:\s*$", re.IGNORECASE)
_MUCH_SUPPORTED = 0.5
_NEAR_MISSES = 16


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a prompt asks: the context is empty where none is given."""

    context: str
    question: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens to emit, and whether the text came to its end (`stop`) or was cut (`length`)."""

    tokens: tuple[str, ...]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """How long an answer may be, must be at least, and where it stops."""

    max_tokens: int
    min_tokens: int = 0
    stop: tuple[str, ...] = ()


def parse(text: str) -> Prompt:
    """Read "Context: … Question: … Answer:" wherever it stands; the last question counts.

    Without a question mark-up the last line that says anything is the question.
    """
    questions = list(_QUESTION.finditer(text))
    if not questions:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return Prompt("", lines[-1] if lines else "", text)
    asked = questions[-1]
    question = _QUESTION_END.split(text[asked.end() :].lstrip(), maxsplit=1)[0].strip()
    contexts = list(_CONTEXT.finditer(text, 0, asked.start()))
    context = text[contexts[-1].end() : asked.start()].strip() if contexts else ""
    return Prompt(context, question, text)


def sentences(text: str) -> list[str]:
    """Sentences of a text, also where a full stop runs into the next capital."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part and part.strip()]


def words(text: str) -> list[str]:
    """Lower-case words, a plural `s` dropped from longer ones."""
    found = (match.lower() for match in _WORD.findall(text))
    return [w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in found]


class Library:
    """The shipped sentences and closed-book answers, with word frequencies."""

    def __init__(self, corpus: Sequence[str], closed_book: Iterable[tuple[str, str]]) -> None:
        self.corpus = tuple(corpus)
        self._closed = {_key(question): answer for question, answer in closed_book}

    @cached_property
    def _bags(self) -> list[frozenset[str]]:
        return [frozenset(words(sentence)) for sentence in self.corpus]

    @cached_property
    def _document_counts(self) -> Counter[str]:
        return Counter(word for bag in self._bags for word in bag)

    def closed_answer(self, question: str) -> str | None:
        """The answer known by heart, if there is one."""
        return self._closed.get(_key(question))

    def idf(self, word: str) -> float:
        """Inverse document frequency, in nats."""
        return log((1 + len(self.corpus)) / (1 + self._document_counts[word]))

    def ranked(self, texts: Sequence[str], question: str) -> list[str]:
        """`texts` by idf-weighted overlap with the question, best first; ties keep their order."""
        asked = set(words(question))
        scores = [
            sum(self.idf(word) for word in asked & bag) / (1 + log(1 + len(bag)))
            for bag in (set(words(text)) for text in texts)
        ]
        order = sorted(range(len(texts)), key=lambda i: -scores[i])
        return [texts[i] for i in order]

    def unsupported(self, prompt: Prompt, number: int) -> list[str]:
        """Fluent sentences near the question that the context does not hold, in random order."""
        known = frozenset(words(prompt.context or (self.closed_answer(prompt.question) or "")))
        foreign = [
            sentence
            for sentence, bag in zip(self.corpus, self._bags, strict=True)
            if len(bag & known) <= _MUCH_SUPPORTED * len(bag)
        ]
        near = self.ranked(foreign, prompt.question)[:_NEAR_MISSES]
        shift = number % len(near) if near else 0
        return near[shift:] + near[:shift]


@lru_cache(maxsize=1)
def library() -> Library:
    """The library that ships with the emulator."""
    data = files("optiinfra.twin") / "data"
    rows = [json.loads(row) for row in (data / "closed_book.jsonl").read_text("utf-8").splitlines()]
    return Library(
        (data / "corpus.txt").read_text("utf-8").splitlines(),
        [(row["question"], row["answer"]) for row in rows],
    )


def answer(source: Library, prompt: Prompt, wanted: Wanted, wrong: int | None = None) -> Answer:
    """Sentences in order of relevance: the best one, and more until `min_tokens` are reached.

    `wrong` is a number of chance: given one, sentences come from elsewhere.
    """
    said = source.unsupported(prompt, wrong) if wrong is not None else _right(source, prompt)
    tokens: list[str] = []
    for sentence in _forever(said or _about(source, prompt)):
        tokens += tokenise(" " + sentence)
        if len(tokens) >= min(max(1, wanted.min_tokens), wanted.max_tokens):
            break
    return _cut(tokens, wanted)


def _right(source: Library, prompt: Prompt) -> list[str]:
    if prompt.context:
        return source.ranked(sentences(prompt.context), prompt.question)
    known = source.closed_answer(prompt.question)
    return [known] if known else _about(source, prompt)


def _about(source: Library, prompt: Prompt) -> list[str]:
    """Without anything to go by: what the prompt seems to be about, then its own sentences."""
    rare = sorted(dict.fromkeys(words(prompt.question)), key=lambda w: -source.idf(w))[:3]
    topic = ", ".join(rare) or "nothing in particular"
    own = [s for s in sentences(prompt.text) if s != prompt.question]
    return [f"This is about {topic}.", *source.ranked(own, prompt.question)]


def _forever(texts: Sequence[str]) -> Iterable[str]:
    while True:
        yield from texts


def _cut(tokens: list[str], wanted: Wanted) -> Answer:
    text = "".join(tokens)
    ends = [at for at in (text.find(stop) for stop in wanted.stop if stop) if at >= 0]
    if ends:
        return Answer(tuple(tokenise(text[: min(ends)]) or ("",)), "stop")
    if len(tokens) > wanted.max_tokens or wanted.min_tokens >= wanted.max_tokens:
        return Answer(tuple(tokens[: wanted.max_tokens]), "length")
    return Answer(tuple(tokens), "stop")


def _key(question: str) -> str:
    return " ".join(words(question))

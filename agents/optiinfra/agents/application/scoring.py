"""Scores of one answer: 0 to 1, higher is better; what cannot be scored is missing, never 0.

Groundedness is lexical: it asks how much of an answer stands in the context of its prompt. It
ranks extractive answers well (AUROC 0.94 on BEGIN-WoW, 0.99 on HaluEval-QA; where "answer length
only" reaches 0.61 and 0.97) and is weak on abstractive summaries, where a judge has to look.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

VERSION = "1"
"""Changes with every change of a formula: scores of two versions are never compared."""

FUNCTION_WORD_WEIGHT = 0.35
WORD_SHARE = 0.75
"""Weight of single words in a sentence's support; word pairs weigh the rest."""
ENTITY_PENALTY = 0.3
"""Share of its support that a sentence loses when none of its names and numbers are given."""
WORST_SENTENCE_SHARE = 0.3
"""Weight of the least supported sentence; the mean over sentences weighs the rest."""

_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)?")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_CONTEXT = re.compile(
    r"\b(?:context|passage|document|knowledge)s?\s*:\s*(.+?)\s*\bquestion\s*:",
    re.IGNORECASE | re.DOTALL,
)
_TAGGED_CONTEXT = re.compile(r"<context>\s*(.+?)\s*</context>", re.IGNORECASE | re.DOTALL)
_ASKS_JSON = re.compile(
    r"\b(?:respond|reply|answer|return|output)\b[^.?!\n]{0,40}\bjson\b|\bvalid json\b",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^```(?:json)?\s*(.*?)\s*```$", re.IGNORECASE | re.DOTALL)
_REFUSAL = re.compile(
    r"^\W*(?:i'?m (?:very )?sorry|(?:i am|we are) (?:very )?sorry|sorry,|i apologi[sz]e|"
    r"(?:i|we) (?:can(?:no|')t|can not|am unable|are unable|won't|will not|must decline|"
    r"do not feel comfortable)\b|i'm (?:unable|not able)|as an? (?:ai|language model))",
    re.IGNORECASE,
)
_SUFFIXES = ("ations", "ation", "ings", "ing", "edly", "ed", "ies", "es", "s", "ly", "e")
_LEAST_STEM = 4
_FUNCTION_WORD_LIST = """
    a about above after again against all also am an and any are as at be because been before
    being below between both but by can could did do does doing down during each either else ever
    few for from further had has have having he her here hers herself him himself his how however
    i if in into is it its itself just may me might more most much must my myself no nor not of
    off on once only or other our ours out over own same shall she should so some such than that
    the their theirs them themselves then there these they this those through thus to too under
    until up upon us very was we were what when where which while who whom whose why will with
    within without would yes yet you your yours
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_WORD_LIST.split())


@dataclass(frozen=True, slots=True)
class Score:
    """One score of one answer; `value` is None when it is missing, and `reason` says why."""

    name: str
    value: float | None
    reason: str = ""
    version: str = VERSION
    direction: Literal["higher_is_better"] = "higher_is_better"

    @property
    def scorer(self) -> str:
        """Name and version, as stored beside each value."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class Word:
    """A word as compared: `stem` is case-folded and without its ending."""

    stem: str
    is_content: bool
    is_entity: bool

    @property
    def weight(self) -> float:
        return 1.0 if self.is_content else FUNCTION_WORD_WEIGHT


def context_of(prompt: str) -> str | None:
    """The text that the answer has to rest on, or None when the prompt brings none.

    Looked for anywhere in the prompt (a chat's messages come flattened into one text): what
    stands between "Context:" (or Passage, Document, Knowledge) and "Question:", or within
    `<context>` tags. When there are several, as in few-shot prompts, the last one counts.
    """
    found = _CONTEXT.findall(prompt) or _TAGGED_CONTEXT.findall(prompt)
    return str(found[-1]) if found else None


def stem_of(word: str) -> str:
    """`word` without a common English ending; at least four letters are left."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= _LEAST_STEM:
            return word[: -len(suffix)]
    return word


def words_of(text: str) -> list[Word]:
    """The words and numbers of `text` in order; "1,200" and "1200" are the same number."""
    plain = unicodedata.normalize("NFKC", text).replace("’", "'")
    return [_word(match.group()) for match in _WORD.finditer(plain)]


def _word(token: str) -> Word:
    folded = token.casefold().removesuffix("'s")
    if folded[0].isdigit():
        return Word(folded.replace(",", ""), is_content=True, is_entity=True)
    is_content = folded not in _FUNCTION_WORDS
    return Word(stem_of(folded), is_content, is_entity=is_content and token[0].isupper())


def groundedness(context: str | None, answer: str, *, is_cut: bool = False) -> Score:
    """How much of `answer` stands in `context`: per sentence, the mean mixed with the worst.

    A sentence's support is the share of its words (function words count 0.35) mixed with the
    share of its word pairs that occur in the context, lowered by the share of its names and
    numbers that do not. Weighting words by their rarity was tried and gained nothing (0.001).
    `is_cut` says that the engine stopped at its length limit: the last word may be half a word
    and is not judged.
    """
    if not context:
        return Score("groundedness", None, "the prompt gives no context")
    source = words_of(context)
    known = {word.stem for word in source}
    known_pairs = {(one.stem, two.stem) for one, two in pairwise(source)}
    supports = [
        _support(sentence, known, known_pairs)
        for sentence in _sentences(answer, is_cut=is_cut)
        if any(word.is_content for word in sentence)
    ]
    if not supports:
        return Score("groundedness", None, "the answer says nothing that could be looked up")
    mean = sum(supports) / len(supports)
    value = (1 - WORST_SENTENCE_SHARE) * mean + WORST_SENTENCE_SHARE * min(supports)
    return Score("groundedness", value)


def _sentences(answer: str, *, is_cut: bool) -> list[list[Word]]:
    sentences = [words_of(part) for part in _SENTENCE_END.split(answer.strip())]
    if is_cut and len(sentences[-1]) > 1:
        sentences[-1] = sentences[-1][:-1]
    return sentences


def _support(sentence: list[Word], known: set[str], known_pairs: set[tuple[str, str]]) -> float:
    total = sum(word.weight for word in sentence)
    words = sum(word.weight for word in sentence if word.stem in known) / total
    pairs = [(one.stem, two.stem) in known_pairs for one, two in pairwise(sentence)]
    support = WORD_SHARE * words + (1 - WORD_SHARE) * _share(pairs, otherwise=words)
    entities = [word.stem in known for word in sentence if word.is_entity]
    return support * (1 - ENTITY_PENALTY * (1 - _share(entities, otherwise=1.0)))


def _share(hits: Sequence[bool], *, otherwise: float) -> float:
    return sum(hits) / len(hits) if hits else otherwise


def similarity(reference: str | None, answer: str) -> Score:
    """1 when the normalised answer is or contains the reference, else the share of its words."""
    if not reference:
        return Score("golden", None, "no reference answer is known")
    expected = [word.stem for word in words_of(reference)]
    if not expected:
        return Score("golden", None, "the reference answer has no words")
    given = [word.stem for word in words_of(answer)]
    if f" {' '.join(expected)} " in f" {' '.join(given)} ":
        return Score("golden", 1.0)
    wanted = set(expected)
    return Score("golden", len(wanted & set(given)) / len(wanted))


def non_refusal(answer: str) -> Score:
    """0 when the answer opens with a refusal or an apology, else 1."""
    if not answer.strip():
        return Score("non_refusal", None, "the answer is empty")
    opening = answer.strip().replace("’", "'")
    return Score("non_refusal", 0.0 if _REFUSAL.match(opening) else 1.0)


def well_formed(prompt: str, answer: str) -> Score:
    """The worst of: not empty, readable characters, no loops, JSON where JSON was asked for."""
    text = answer.strip()
    if not text:
        return Score("format", 0.0, "the answer is empty")
    parts = {"unreadable characters": _readable(text), "repeats itself": _varied(text)}
    if _ASKS_JSON.search(prompt):
        parts["not the JSON that was asked for"] = _parses(text)
    worst = min(parts, key=lambda name: parts[name])
    return Score("format", parts[worst], worst if parts[worst] < 1 else "")


def _readable(text: str) -> float:
    garbage = sum(
        char == "\ufffd"
        or (unicodedata.category(char) in {"Cc", "Co", "Cn"} and not char.isspace())
        for char in text
    )
    return 1 - garbage / len(text)


def _varied(text: str) -> float:
    """Share of distinct runs of four words."""
    words = [word.stem for word in words_of(text)]
    runs = [tuple(words[at : at + 4]) for at in range(len(words) - 3)]
    return len(set(runs)) / len(runs) if runs else 1.0


def _parses(text: str) -> float:
    fenced = _FENCE.match(text)
    try:
        json.loads(fenced.group(1) if fenced else text)
    except ValueError:
        return 0.0
    return 1.0


def overall(
    context: str | None, answer: str, *, reference: str | None = None, is_cut: bool = False
) -> Score:
    """The score that the gate compares: groundedness, else likeness to the golden answer.

    Missing when neither can be told. An empty answer is not scored at all: it breaks a hard floor.
    """
    if not answer.strip():
        return Score("none", None, "the answer is empty")
    grounded = groundedness(context, answer, is_cut=is_cut)
    golden = similarity(reference, answer)
    if grounded.value is None and golden.value is not None:
        return golden
    return grounded

"""Scores of answers: what they rank, what they leave unknown, and how they fare on real data."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from optiinfra.agents.application.scoring import (
    VERSION,
    Score,
    context_of,
    groundedness,
    non_refusal,
    overall,
    similarity,
    stem_of,
    well_formed,
    words_of,
)

QUALITY_DATA = Path(__file__).parents[3] / "shared" / "data" / "quality"
CONTEXT = (
    "The Eiffel Tower was completed in 1889. It is 330 metres tall and stands in Paris. "
    "Gustave Eiffel's company designed it."
)


def value(score: Score) -> float:
    assert score.value is not None
    assert 0 <= score.value <= 1
    return score.value


def auroc(good: Sequence[float], bad: Sequence[float]) -> float:
    """Chance that a good one scores above a bad one, ties half (Mann-Whitney)."""
    ranked = sorted([(score, True) for score in good] + [(score, False) for score in bad])
    rank_sum, rank = 0.0, 1
    for _, tied in groupby(ranked, key=lambda one: one[0]):
        group = list(tied)
        rank_sum += (rank + (len(group) - 1) / 2) * sum(is_good for _, is_good in group)
        rank += len(group)
    return (rank_sum - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad))


def rows(name: str) -> list[dict[str, Any]]:
    path = QUALITY_DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def grounded(pairs: Sequence[tuple[str, str]]) -> list[float]:
    scores = [groundedness(context, answer).value for context, answer in pairs]
    return [score for score in scores if score is not None]


def test_groundedness_ranks_attributable_replies_on_begin_far_above_answer_length() -> None:
    data = rows("begin_wow_dev.jsonl.gz")
    good = [row for row in data if row["begin_label"] == "Fully attributable"]
    bad = [row for row in data if row["begin_label"] != "Fully attributable"]
    scored = [
        grounded([(row["knowledge"], row["response"]) for row in part]) for part in (good, bad)
    ]
    assert [len(part) for part in scored] == [180, 250]
    by_length = [[-float(len(row["response"])) for row in part] for part in (good, bad)]
    assert auroc(*scored) >= 0.94
    assert auroc(*by_length) == pytest.approx(0.609, abs=0.001)
    always_hallucinated = auroc([0.0] * len(good), [0.0] * len(bad))
    assert always_hallucinated == 0.5


def test_groundedness_on_halueval_beats_answer_length_by_little_because_length_is_an_artefact() -> (
    None
):
    data = rows("halueval_qa.jsonl.gz")
    good = grounded([(row["knowledge"], row["right_answer"]) for row in data])
    bad = grounded([(row["knowledge"], row["hallucinated_answer"]) for row in data])
    assert len(data) - len(good) == 24, "yes and no cannot be looked up"
    assert len(bad) == len(data)
    assert auroc(good, bad) >= 0.99
    by_length = auroc(
        [-float(len(row["right_answer"])) for row in data],
        [-float(len(row["hallucinated_answer"])) for row in data],
    )
    assert by_length == pytest.approx(0.967, abs=0.001)


def test_sentences_of_the_context_score_one_and_foreign_ones_low() -> None:
    assert value(groundedness(CONTEXT, CONTEXT)) == 1
    foreign = "The orchestra of Vienna played 12 waltzes on Sunday."
    assert value(groundedness(CONTEXT, foreign)) < 0.3
    mixed = f"The Eiffel Tower was completed in 1889. {foreign}"
    assert value(groundedness(CONTEXT, foreign)) < value(groundedness(CONTEXT, mixed)) < 0.7


def test_a_wrong_number_costs_more_than_another_ending() -> None:
    right = value(groundedness(CONTEXT, "It is 330 metres tall."))
    reworded = value(groundedness(CONTEXT, "It is 330 metre tall."))
    wrong = value(groundedness(CONTEXT, "It is 450 metres tall."))
    assert right == reworded == 1
    assert wrong < 0.7


def test_half_a_word_at_the_length_limit_is_not_held_against_the_answer() -> None:
    cut = "It is 330 metres ta"
    assert value(groundedness(CONTEXT, cut)) < 1
    assert value(groundedness(CONTEXT, cut, is_cut=True)) == 1
    assert value(groundedness(CONTEXT, "Paris", is_cut=True)) == 1


@pytest.mark.parametrize(
    ("context", "answer", "reason"),
    [
        (None, "Paris", "no context"),
        ("", "Paris", "no context"),
        (CONTEXT, "yes", "nothing that could be looked up"),
        (CONTEXT, "", "nothing that could be looked up"),
    ],
)
def test_what_cannot_be_grounded_is_missing_with_a_reason(
    context: str | None, answer: str, reason: str
) -> None:
    score = groundedness(context, answer)
    assert score.value is None
    assert reason in score.reason


def test_scores_name_their_version_and_direction() -> None:
    score = groundedness(CONTEXT, CONTEXT)
    assert score.scorer == f"groundedness/{VERSION}"
    assert score.direction == "higher_is_better"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Context: A b.\nQuestion: c?\nAnswer:", "A b."),
        ("user: Please read.\n\nuser: Passage: A\nb.\nQuestion: c?", "A\nb."),
        ("Context: one\nQuestion: q\nAnswer: a\nContext: two\nQuestion: r", "two"),
        ("<context>\nA b.\n</context>\nWhat now?", "A b."),
        ("Tell me a story.", None),
    ],
)
def test_the_context_is_found_wherever_it_stands(prompt: str, expected: str | None) -> None:
    assert context_of(prompt) == expected


def test_words_are_compared_without_case_ending_or_thousands_comma() -> None:
    stems = [word.stem for word in words_of("Paris’s towers, 1,200 jumped")]
    assert stems == ["pari", "tower", "1200", "jump"]
    assert stem_of("ring") == "ring"
    assert [word.weight for word in words_of("the Tower")] == [0.35, 1.0]


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("Gustave Eiffel", "It was gustave EIFFEL, of course.", 1.0),
        ("Gustave Eiffel", "Eiffel", 0.5),
        ("1,889", "1889", 1.0),
        ("cat", "concatenation", 0.0),
    ],
)
def test_golden_similarity_is_containment_else_the_share_of_words(
    reference: str, answer: str, expected: float
) -> None:
    assert similarity(reference, answer).value == expected


@pytest.mark.parametrize("reference", [None, "", "!?"])
def test_golden_similarity_without_a_reference_is_missing(reference: str | None) -> None:
    assert similarity(reference, "anything").value is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("I’m sorry, but I can't help with that.", 0.0),
        ("I cannot answer this.", 0.0),
        ("As an AI language model, I have no opinion.", 0.0),
        ("Sorry to say, the tower is closed.", 1.0),
        ("Paris. I cannot say more.", 1.0),
        ("  ", None),
    ],
)
def test_a_refusal_is_an_answer_that_opens_with_one(answer: str, expected: float | None) -> None:
    assert non_refusal(answer).value == expected


@pytest.mark.parametrize(
    ("prompt", "answer", "low", "high", "reason"),
    [
        ("q", "", 0, 0, "empty"),
        ("q", "It stands in Paris.", 1, 1, ""),
        ("q", "Paris", 1, 1, ""),
        ("q", "the end of the line " * 10, 0, 0.3, "repeats itself"),
        ("q", "\ufffd\ufffd\ufffdab", 0.3, 0.5, "unreadable"),
        ("Answer as JSON.", '{"a": 1}', 1, 1, ""),
        ("Answer as JSON.", '```json\n{"a": 1}\n```', 1, 1, ""),
        ("Answer as JSON.", "a is 1", 0, 0, "not the JSON"),
    ],
)
def test_format_is_the_worst_of_its_parts(
    prompt: str, answer: str, low: float, high: float, reason: str
) -> None:
    score = well_formed(prompt, answer)
    assert low <= value(score) <= high
    assert reason in score.reason


def test_the_gate_compares_groundedness_else_the_golden_answer_else_nothing() -> None:
    assert overall(CONTEXT, "in Paris", reference="London").name == "groundedness"
    assert overall(None, "in Paris", reference="Paris") == similarity("Paris", "in Paris")
    assert overall(CONTEXT, "yes", reference="yes").value == 1
    assert overall(None, "in Paris").value is None
    empty = overall(CONTEXT, " ", reference="Paris")
    assert (empty.name, empty.value) == ("none", None)

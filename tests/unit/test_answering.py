"""The emulator's answerer, tokenizer, decisions of chance and exposition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from optiinfra.schemas.errors import Rejected
from optiinfra.serving.cards import load_card
from optiinfra.serving.scheduler import Scheduler
from optiinfra.twin.answering import Prompt, Wanted, answer, library, parse, sentences, words
from optiinfra.twin.defects import Defect, Draws
from optiinfra.twin.engine import Engine
from optiinfra.twin.exposition import Exposition
from optiinfra.twin.openai import ChatRequest, CompletionRequest
from optiinfra.twin.tokens import block_hashes, tokenise

CONTEXT = (
    "Berlin lies on the river Spree. Paris is the capital of France.It has two million people. "
    "Rome was founded in 753 BC."
)
PROMPT = (
    f"Padding that says nothing.\nContext: {CONTEXT}\nQuestion: What is France's capital?\nAnswer:"
)


def said(prompt: str, wanted: Wanted, wrong: int | None = None) -> str:
    return "".join(answer(library(), parse(prompt), wanted, wrong).tokens).strip()


@given(st.text(max_size=300))
def test_tokens_joined_are_the_text(text: str) -> None:
    assert "".join(tokenise(text)) == text


def test_english_has_about_four_characters_a_token() -> None:
    text = " ".join(library().corpus)
    assert 3.5 < len(text) / len(tokenise(text)) < 5


@given(st.lists(st.sampled_from("abc"), max_size=60), st.integers(0, 60))
def test_equal_prefixes_have_equal_block_hashes(tokens: list[str], kept: int) -> None:
    other = [*tokens[:kept], "different", *tokens[kept + 1 :]]
    mine, theirs = block_hashes(tokens, 4), block_hashes(other, 4)
    shared = min(kept, len(tokens)) // 4
    assert mine[:shared] == theirs[:shared]
    assert not set(mine[shared:]) & set(theirs[shared:])


def test_a_prompt_is_read_wherever_it_stands() -> None:
    prompt = parse(PROMPT)
    assert prompt.context == CONTEXT
    assert prompt.question == "What is France's capital?"
    assert parse("Tell me.\nWho are you?\n\n") == Prompt(
        "", "Who are you?", "Tell me.\nWho are you?\n\n"
    )
    assert parse("").question == ""
    assert parse("Question: one line? Answer:").question == "one line?"


def test_sentences_end_also_where_a_full_stop_runs_into_a_capital() -> None:
    assert sentences(CONTEXT)[1:3] == [
        "Paris is the capital of France.",
        "It has two million people.",
    ]
    assert words("The cats' glass") == ["the", "cat", "glass"]


def test_the_best_sentence_comes_first_and_ends_the_answer() -> None:
    result = answer(library(), parse(PROMPT), Wanted(100))
    assert "".join(result.tokens) == " Paris is the capital of France."
    assert result.finish_reason == "stop"


def test_an_answer_is_cut_at_its_limit() -> None:
    result = answer(library(), parse(PROMPT), Wanted(3))
    assert ("".join(result.tokens), result.finish_reason) == (" Paris is the", "length")


@given(st.integers(1, 400))
def test_without_an_end_an_answer_has_exactly_the_tokens_asked_for(limit: int) -> None:
    result = answer(library(), parse(PROMPT), Wanted(limit, min_tokens=limit))
    assert len(result.tokens) == limit
    assert result.finish_reason == "length"


def test_more_is_said_in_order_of_relevance_until_enough() -> None:
    text = said(PROMPT, Wanted(200, min_tokens=10))
    assert text.startswith("Paris is the capital of France. ")
    assert len(tokenise(text)) >= 10


def test_a_stop_string_ends_the_answer_before_it() -> None:
    assert said(PROMPT, Wanted(100, stop=(" of",))) == "Paris is the capital"
    assert said(PROMPT, Wanted(100, stop=(" Paris",))) == ""
    assert said(PROMPT, Wanted(100, stop=("never",))) == "Paris is the capital of France."


def test_a_wrong_answer_is_fluent_repeatable_and_not_in_the_context() -> None:
    for number in range(40):
        text = said(PROMPT, Wanted(60), wrong=number)
        assert text in library().corpus
        assert text not in CONTEXT
        assert text == said(PROMPT, Wanted(60), wrong=number)
    assert len({said(PROMPT, Wanted(60), wrong=n) for n in range(40)}) > 5


def test_a_question_known_by_heart_needs_no_context() -> None:
    question = (
        "Which genus of moth in the world's seventh-largest country contains only one species?"
    )
    right = "Indogrammodes is a genus of moths of the Crambidae family."
    assert said(f"Question: {question}\nAnswer:", Wanted(60)) == right
    assert said(question, Wanted(60)) == right
    assert said(question, Wanted(60), wrong=3) != right


def test_without_context_or_knowledge_the_answer_comes_from_the_prompt() -> None:
    text = said("Some GPUs are fast. Explain paged attention.", Wanted(40, min_tokens=40))
    assert text.startswith("This is about")
    assert "Some GPUs are fast." in text
    assert said("", Wanted(20)).startswith("This is about nothing in particular.")


def test_decisions_repeat_by_seed_and_request_and_meet_their_rate() -> None:
    draws, again, other = Draws(7), Draws(7), Draws(8)
    fates = [draws.hits(0.3, n, "wrong") for n in range(4000)]
    assert fates == [again.hits(0.3, n, "wrong") for n in range(4000)]
    assert fates != [other.hits(0.3, n, "wrong") for n in range(4000)]
    assert fates != [draws.hits(0.3, n, "error") for n in range(4000)]
    assert 0.27 < sum(fates) / 4000 < 0.33
    assert not any(draws.hits(0.0, n, "wrong") for n in range(100))
    assert all(draws.hits(1.0, n, "wrong") for n in range(100))


def test_a_defect_beyond_its_bounds_is_refused() -> None:
    for bad in ({"slowdown": 0}, {"error_rate": 1.1}, {"wrong": 1}):
        with pytest.raises(ValidationError):
            Defect.model_validate(bad)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [("hi", "hi"), (["hi"], "hi"), ([1, 22], " 1 22"), ([[3]], " 3")],
    ids=["text", "list of one", "token ids", "list of token ids"],
)
def test_one_prompt_is_taken_as_text_or_tokens(prompt: object, text: str) -> None:
    assert CompletionRequest.model_validate({"prompt": prompt}).prompt_text() == text


@pytest.mark.parametrize("prompt", ["", [], ["a", "b"]])
def test_no_prompt_or_several_are_rejected(prompt: object) -> None:
    with pytest.raises(Rejected):
        CompletionRequest.model_validate({"prompt": prompt}).prompt_text()


def test_chat_content_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": "Hello"}, {"type": "image_url", "image_url": {}}]
    messages = [{"role": "system"}, {"role": "user", "content": parts}]
    body = ChatRequest.model_validate(
        {"messages": messages, "stop": "x", "max_completion_tokens": 5}
    )
    assert body.prompt_text() == "<|system|>\n\n<|user|>\nHello\n<|assistant|>\n"
    assert body.stop == ("x",)
    assert body.limit == 5


def test_metrics_say_that_they_are_emulated_and_can_be_hidden() -> None:
    exposition = Exposition('a"b\\c', {"block_size": "16"})
    exposition.count("num_preemptions_total", 2)
    exposition.publish("own", "gauge", "Own.", ({}, 1.0))
    text = exposition.render()
    assert 'vllm:num_preemptions_total{engine="0",model_name="a\\"b\\\\c"} 2.0' in text
    assert "# HELP vllm:num_preemptions_total (emulated) " in text
    hidden = exposition.render(frozenset({"vllm:num_preemptions", "own"}))
    assert "num_preemptions_total" not in hidden
    assert "own" not in hidden


def test_a_host_too_busy_moves_the_timetable_and_says_so() -> None:
    engine = Engine(Scheduler(load_card("h100-8b-fp16-tp1")), Exposition("m", {}), 2.0)
    assert engine._next_due(10.0, 0.02, 10.0) == pytest.approx(10.01)
    assert engine.lag_s == 0.0
    assert engine._next_due(10.0, 0.02, 11.0) == pytest.approx(10.75)
    assert engine.lag_s == pytest.approx(0.74)

"""The trace and the prompts of the demo's users."""

from __future__ import annotations

from itertools import pairwise, takewhile

import pytest

from optiinfra.demo.load import LoadPlan, Stream, arrivals
from optiinfra.demo.prompts import PromptBook
from optiinfra.demo.scenario import CHAT, SEARCH, Play, cast, load_plan
from optiinfra.demo.trace import Arrival, Mix, azure_trace, schedule
from optiinfra.schemas.errors import Rejected
from optiinfra.twin.tokens import tokenise

MIX = Mix(
    rate_rps=2.0,
    prompt_scale=0.5,
    prompt_bounds=(100, 500),
    output_scale=0.25,
    output_bounds=(8, 60),
)


def test_the_shipped_trace_is_the_whole_published_hour() -> None:
    trace = azure_trace()
    assert len(trace) == 19_366
    assert trace[0] == Arrival(0.0, 374, 44)
    assert all(one.at_s <= two.at_s for one, two in pairwise(trace))
    assert 3_400 < trace[-1].at_s < 3_600


def test_arrivals_keep_the_order_and_the_bursts_and_have_the_rate_asked_for() -> None:
    found = schedule(azure_trace(), MIX, 400, seed=1, name="chat")
    gaps = [two.at_s - one.at_s for one, two in pairwise(found)]
    assert min(gaps) >= 0
    assert found[-1].at_s == pytest.approx(200, rel=0.05)
    assert max(gaps) > 3 * min(gap for gap in gaps if gap > 0)


def test_lengths_are_the_traced_ones_scaled_and_kept_in_bounds() -> None:
    trace = [Arrival(float(n), 1000 * n, 100 * n) for n in range(6)]
    found = schedule(trace, MIX, 5, seed=1, name="chat")
    assert [one.prompt_tokens for one in found] == [100, 500, 500, 500, 500]
    assert [one.output_tokens for one in found] == [8, 25, 50, 60, 60]


def test_the_same_seed_and_name_give_the_same_part_and_others_another() -> None:
    trace = azure_trace()
    first = schedule(trace, MIX, 50, seed=1, name="chat")
    assert first == schedule(trace, MIX, 50, seed=1, name="chat")
    assert first != schedule(trace, MIX, 50, seed=2, name="chat")
    assert first != schedule(trace, MIX, 50, seed=1, name="assist")


def test_more_requests_than_the_trace_has_are_refused() -> None:
    with pytest.raises(Rejected, match="too many"):
        schedule(azure_trace()[:5], MIX, 5, seed=1, name="chat")


@pytest.mark.parametrize("tokens", [150, 400, 1200])
def test_a_prompt_is_about_as_long_as_asked_and_holds_its_answer(tokens: int) -> None:
    book = PromptBook(seed=1)
    sizes = []
    for number in range(40):
        prompt = book.prompt(number, tokens)
        assert prompt.startswith("Context: ")
        assert "\nQuestion: " in prompt
        assert prompt.endswith("\nAnswer:")
        sizes.append(len(tokenise(prompt)))
    assert sum(sizes) / len(sizes) == pytest.approx(tokens, rel=0.25)


def test_prompts_repeat_with_the_seed() -> None:
    assert PromptBook(1).prompt(5, 300) == PromptBook(1).prompt(5, 300)
    assert PromptBook(1).prompt(5, 300) != PromptBook(2).prompt(5, 300)


def test_users_go_on_asking_at_their_rate_for_as_long_as_it_takes() -> None:
    plan = load_plan(tuple(Play), seed=1, gateway_url="http://127.0.0.1:1")
    for stream in plan.streams:
        hour = list(takewhile(lambda one: one.at_s < 3600, arrivals(stream, plan)))
        assert len(hour) == pytest.approx(3600 * stream.mix.rate_rps, rel=0.01)


def test_only_the_deployments_of_the_chosen_plays_are_asked() -> None:
    assert cast([Play.MIGRATION, Play.RECLAIM]) == (CHAT,)
    assert cast([Play.VETO]) == (SEARCH,)
    plan = load_plan([Play.VETO], seed=1, gateway_url="http://127.0.0.1:1")
    assert [one.deployment for one in plan.streams] == ["search"]


def test_a_plan_survives_its_file() -> None:
    plan = LoadPlan(
        gateway_url="http://127.0.0.1:1",
        streams=(Stream(deployment="chat", model="m", mix=MIX),),
        seed=1,
    )
    assert LoadPlan.model_validate_json(plan.model_dump_json()) == plan

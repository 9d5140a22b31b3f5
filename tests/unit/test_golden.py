"""The golden set: what ships, what a user may give, how it rotates, how replicas are asked."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections import Counter
from pathlib import Path

import httpx
import pytest

from optiinfra.agents.application.data.build import items, main, stratum_of
from optiinfra.agents.application.golden import (
    Ask,
    GoldenItem,
    GoldenRunner,
    Reply,
    load_golden,
    parse_golden,
)
from optiinfra.agents.application.scoring import context_of
from optiinfra.schemas.errors import Rejected

HALUEVAL = Path(__file__).parents[3] / "shared" / "data" / "quality" / "halueval_qa.jsonl.gz"


def lines(count: int = 20) -> list[str]:
    return [json.dumps({"id": f"q{n}", "prompt": "?", "answer": "!"}) for n in range(count)]


def ask(number: int = 0, replica: str = "one") -> Ask:
    return Ask(GoldenItem(id=f"q{number}", prompt="?", answer="!"), replica, f"http://{replica}/")


async def reply_to(response: httpx.Response) -> Reply:
    transport = httpx.MockTransport(lambda _: response)
    runner = GoldenRunner(lambda: httpx.AsyncClient(transport=transport))
    (reply,) = await runner.run([ask()], "m", limit_s=5)
    return reply


def test_the_shipped_set_has_enough_questions_of_each_kind_with_their_context() -> None:
    shipped = load_golden().items
    assert len(shipped) >= 200
    strata = Counter(item.stratum for item in shipped)
    assert set(strata) == {"name", "number", "yes_no"}
    assert all(item.context == context_of(item.prompt) for item in shipped)


def test_the_shipped_set_is_what_the_build_makes_of_its_source(tmp_path: Path) -> None:
    if not HALUEVAL.exists():
        pytest.skip(f"{HALUEVAL} is not on this machine")
    main([str(HALUEVAL), str(tmp_path / "golden.jsonl.gz")])
    assert load_golden(tmp_path / "golden.jsonl.gz") == load_golden()
    first = next(items(HALUEVAL))
    assert first.prompt.startswith("Context: ")


@pytest.mark.parametrize(
    ("answer", "kind"), [("Yes.", "yes_no"), ("5 km", "number"), ("Bo", "name")]
)
def test_the_stratum_is_the_kind_of_answer(answer: str, kind: str) -> None:
    assert stratum_of(answer) == kind


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_user_may_give_a_set_plain_or_gzipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    raw = "\n".join([*lines(), "", ""]).encode()
    path.write_bytes(gzip.compress(raw) if suffix.endswith(".gz") else raw)
    own = load_golden(path)
    assert [item.id for item in own.items] == [f"q{n}" for n in range(20)]
    assert own.items[0].stratum == "all"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ('{"id": "a", "prompt": "?"}', "mine:3: answer: Field required"),
        ('{"id": "a b", "prompt": "?", "answer": "!"}', "mine:3: id: "),
        ('{"id": "a", "prompt": "?", "answer": "!", "answr": 1}', "mine:3: answr: Extra"),
        ("not json", "mine:3: line: Invalid JSON"),
        ('{"id": "q1", "prompt": "?", "answer": "!"}', "mine:3: id 'q1' stands in line 2 too"),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong(changed: str, message: str) -> None:
    text = "\n".join([*lines()[:2], changed, *lines()[3:]])
    with pytest.raises(Rejected) as refused:
        parse_golden(text, "mine")
    assert message in str(refused.value)


def test_a_set_that_is_too_small_missing_or_broken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="holds 3 items, 20 are the least"):
        parse_golden("\n".join(lines(3)), "mine")
    with pytest.raises(Rejected, match="cannot be read"):
        load_golden(tmp_path / "none.jsonl")
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(b"no gzip")
    with pytest.raises(Rejected, match="cannot be read"):
        load_golden(broken)


def test_prompts_rotate_until_all_were_asked_and_a_repeated_look_asks_the_same() -> None:
    own = parse_golden("\n".join(lines(25)), "mine")
    asked: Counter[str] = Counter()
    for _ in range(5):
        chosen = [item.id for item in own.choose("change", asked, 5)]
        assert chosen == [item.id for item in own.choose("change", asked, 5)]
        asked.update(chosen)
    assert set(asked.values()) == {1}
    assert len(asked) == 25
    assert own.choose("change", {}, 5) != own.choose("other", {}, 5)
    assert len(own.choose("change", {}, 99)) == 25


async def test_a_completion_is_read_and_asked_for_greedily() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(
            200, json={"choices": [{"text": f" {request.url.host}", "finish_reason": "stop"}]}
        )

    transport = httpx.MockTransport(answer)
    runner = GoldenRunner(lambda: httpx.AsyncClient(transport=transport), max_tokens=9)
    replies = await runner.run([ask(n, name) for n, name in enumerate("abc")], "m", limit_s=5)
    assert [reply.text for reply in replies] == [" a", " b", " c"]
    assert all(reply.ok and reply.finish_reason == "stop" for reply in replies)
    assert json.loads(seen[0].content) == {
        "model": "m", "prompt": "?", "max_tokens": 9, "temperature": 0,
    }  # fmt: skip
    assert seen[0].url.path == "/v1/completions"


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(500, request=httpx.Request("POST", "http://one")),
        httpx.Response(200, text="no json", request=httpx.Request("POST", "http://one")),
        httpx.Response(200, json={"choices": []}),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"choices": [{"text": None}]}),
    ],
)
async def test_an_answer_that_is_no_completion_is_the_engines_failure(
    response: httpx.Response,
) -> None:
    reply = await reply_to(response)
    assert not reply.ok
    assert reply.unreached is None


async def test_a_busy_dead_or_silent_replica_is_unreached_and_not_failed() -> None:
    assert (await reply_to(httpx.Response(429))).unreached == "too busy (429)"

    async def silent(request: httpx.Request) -> httpx.Response:
        if request.url.host == "dead":
            raise httpx.ConnectError("refused")
        await asyncio.Event().wait()
        raise AssertionError

    runner = GoldenRunner(lambda: httpx.AsyncClient(transport=httpx.MockTransport(silent)))
    replies = await runner.run([ask(0, "dead"), ask(1, "silent")], "m", limit_s=0.05)
    assert [reply.unreached for reply in replies] == [
        "ConnectError: refused", "no answer within 0.05 s",
    ]  # fmt: skip


async def test_a_prompt_that_is_refused_was_turned_away_and_one_that_failed_was_not() -> None:
    assert (await reply_to(httpx.Response(404))).turned_away
    assert not (await reply_to(httpx.Response(500))).turned_away
    assert not (await reply_to(httpx.Response(200, text="no json"))).turned_away


async def test_a_prompt_counts_as_asked_when_it_is_put_to_the_replica_not_when_it_waits() -> None:
    loop, put = asyncio.get_running_loop(), []

    async def slow(request: httpx.Request) -> httpx.Response:
        put.append(loop.time())
        answered = asyncio.Event()
        loop.call_later(0.02, answered.set)
        await answered.wait()
        return httpx.Response(200, json={"choices": [{"text": "x"}]})

    transport = httpx.MockTransport(slow)
    runner = GoldenRunner(lambda: httpx.AsyncClient(transport=transport), per_replica=1)
    replies = await runner.run([ask(n, "a") for n in range(3)], "m", limit_s=5)
    ago = [reply.asked_ago_s for reply in replies]
    assert ago == sorted(ago, reverse=True)
    assert min(ago) > 0
    assert ago[0] - ago[2] == pytest.approx(put[2] - put[0], abs=0.015)
    assert ago[0] - ago[2] > 0.03


async def test_a_replica_is_never_asked_more_at_once_than_allowed() -> None:
    busy: Counter[str] = Counter()
    most: Counter[str] = Counter()

    async def slow(request: httpx.Request) -> httpx.Response:
        host = request.url.host
        busy[host] += 1
        most[host] = max(most[host], busy[host])
        await asyncio.sleep(0)
        busy[host] -= 1
        return httpx.Response(200, json={"choices": [{"text": "x"}]})

    runner = GoldenRunner(
        lambda: httpx.AsyncClient(transport=httpx.MockTransport(slow)), per_replica=2
    )
    asks = [ask(n, name) for n in range(8) for name in "ab"]
    assert all(reply.ok for reply in await runner.run(asks, "m", limit_s=5))
    assert most == {"a": 2, "b": 2}

"""The figures of the vLLM demo: what is promised, what is complained of, how answers are paired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from optiinfra.demo.vllm.engine import default_folder, found
from optiinfra.demo.vllm.engine import main as tell_scripts
from optiinfra.demo.vllm.measure import (
    REQUESTS,
    STEADY_PER_S,
    mcnemar,
    right_answers,
    saturating,
    steady,
)
from optiinfra.demo.vllm.plan import (
    BAD_BATCH,
    GRID,
    TRIALS,
    engine,
    fleet,
    models_in,
    questions,
    written,
)
from optiinfra.demo.vllm.summary import (
    Accuracy,
    Counts,
    Grid,
    Measured,
    Summary,
    Tuned,
    VariantEnd,
)
from optiinfra.events.facts import GateAnswered
from optiinfra.runtime.engine_file import declared_engines
from optiinfra.runtime.fleet_file import load_fleet
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.schemas.rollout import ArmEvidence, SequentialEvidence
from optiinfra.schemas.vote import AgentName
from optiinfra.serving.launch import problems
from tests.factories import gate_answer


def walked(size: int, *, best: float, ours: float) -> Grid:
    return Grid(
        size=size, best="max_num_seqs 64", best_tokens_per_s=best, ours_tokens_per_s=ours, walked={}
    )


def ended(verdict: str, samples: int) -> VariantEnd:
    return VariantEnd(verdict=verdict, stage=0, samples=samples)


def summary(**changes: Any) -> Summary:
    given: dict[str, Any] = {
        "tuned": Tuned(state="completed", knobs={"max_num_seqs": 64}, trials=6, staged_gain=5.0),
        "before": Measured(tokens_per_s=480, ttft_p95_s=19.0, served=200, failed=0),
        "after": Measured(tokens_per_s=2400, ttft_p95_s=4.0, served=200, failed=0),
        "grid": walked(18, best=2500, ours=2450),
        "requests": Counts(
            served=900, failed=0, truncated=0, gateway={"served": 950, "failed": 0, "truncated": 0}
        ),
        "accuracy": Accuracy(before=1.0, after=1.0, asked=300, p_value=1.0),
        "variants": {
            "broken": (ended("rolled_back", 24),),
            "worse": (ended("rolled_back", 240),),
            "equal": (ended("completed", 400),),
        },
        "audit_ok": True,
    }
    return Summary(**{**given, **changes})


def test_a_run_as_promised_is_not_complained_of() -> None:
    made = summary()
    assert list(made.complaints()) == []
    line = made.line()
    assert line["tokens_per_s"] == {
        "before": 480.0, "after": 2400.0, "grid_best": 2500.0,
    }  # fmt: skip
    assert line["trials"] == {"ours": 6, "grid": 18}
    assert line["ttft_p95_s"] == {"before": 19.0, "after": 4.0}
    variants = line["variants"]
    assert isinstance(variants, dict)
    assert variants["broken"] == {
        "verdict": "rolled_back", "stage": 0, "samples": 24, "as_promised": 1, "runs": 1,
    }  # fmt: skip


LOST = {"served": 900, "failed": 1, "truncated": 0}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"tuned": Tuned(state="rolled_back", knobs={}, trials=6, staged_gain=None)},
            "rolled_back",
        ),
        ({"after": Measured(tokens_per_s=900, ttft_p95_s=4, served=1, failed=0)}, "1.88 times"),
        ({"after": Measured(tokens_per_s=2400, ttft_p95_s=20, served=1, failed=0)}, "TTFT"),
        ({"grid": walked(18, best=2500, ours=2300)}, "92%"),
        ({"grid": walked(12, best=2500, ours=2500)}, "6 trials of 12"),
        ({"requests": Counts(**LOST, gateway=LOST)}, "requests were lost"),
        ({"accuracy": Accuracy(before=1, after=0.9, asked=300, p_value=0.001)}, "answers changed"),
        ({"variants": {"broken": (ended("rolled_back", 31),)}}, "broken"),
        ({"variants": {"broken": (ended("vetoed", 0),)}}, "broken"),
        ({"variants": {"worse": (ended("completed", 300),)}}, "worse"),
        ({"variants": {"equal": (ended("rolled_back", 300),)}}, "equal"),
        ({"audit_ok": False}, "hash chains"),
    ],
)
def test_what_is_not_as_promised_is_told(changes: dict[str, Any], complaint: str) -> None:
    [told] = summary(**changes).complaints()
    assert complaint in told


def test_one_of_ten_runs_of_the_worse_weights_may_slip_through() -> None:
    fell, passed = ended("rolled_back", 200), ended("completed", 900)
    assert not list(summary(variants={"worse": (*(fell,) * 9, passed)}).complaints())
    assert list(summary(variants={"worse": (*(fell,) * 8, passed, passed)}).complaints())
    assert list(summary(variants={"equal": (*(passed,) * 9, fell)}).complaints())


def test_without_a_grid_nothing_is_said_of_it() -> None:
    assert not list(summary(grid=None).complaints())


def test_paired_answers_that_changed_one_way_are_told_from_chance() -> None:
    same = [True] * 300
    assert mcnemar(same, same) == 1.0
    assert mcnemar(same, [False] * 19 + [True] * 281) < 1e-4
    assert mcnemar([True, False], [False, True]) == 1.0
    assert mcnemar([True] * 5, [False] * 5) == pytest.approx(2 / 32)


def answered(stage: int, look: int, scored: int | None) -> GateAnswered:
    arm = ArmEvidence(answers=scored, scored=scored, units=scored) if scored is not None else None
    evidence = SequentialEvidence(
        pairs=1, e_rollback=1, e_promote=1, alpha=0.05, beta=0.05, margin=0.05, canary=arm
    )
    made = gate_answer("0" * 32, AgentName.APPLICATION, stage=stage, look=look)
    quality = evidence if scored is not None else None
    return GateAnswered(answer=made.model_copy(update={"quality": quality}))


def test_canary_answers_are_those_of_the_last_look_of_each_stage() -> None:
    looks = [answered(0, 1, 60), answered(0, 2, 120), answered(1, 1, None), answered(1, 2, 40)]
    assert VariantEnd.of("rolled_back", looks) == VariantEnd(
        verdict="rolled_back", stage=1, samples=160
    )
    assert VariantEnd.of("vetoed", []).samples == 0


def test_the_demos_files_are_good_and_its_grid_starts(tmp_path: Path) -> None:
    models = models_in(tmp_path)
    made = load_fleet(written(tmp_path, Path("/bin/true"), models))
    declared = declared_engines(made)["qa"]
    assert declared.max_num_seqs == BAD_BATCH
    assert declared.model == str(models.served)
    assert made.golden is not None
    assert len(made.golden.read_text().splitlines()) == len(questions()) == 300
    for knobs in GRID:
        assert not problems(engine(models).model_copy(update=knobs), "0.32.0")
    assert len(GRID) / 3 >= TRIALS
    assert fleet(Path("/bin/true"))["mode"] == "act"
    weights = {one.name: (one / "model.safetensors").read_bytes() for one in models_of(models)}
    assert weights["tinyqa-served"] == weights["tinyqa-equal"]
    assert len(set(weights.values())) == 3


def models_of(models: Any) -> list[Path]:
    return [models.served, models.equal, models.worse, models.broken]


def test_a_steady_replay_asks_the_same_evenly() -> None:
    replay, all_at_once = steady(questions()), saturating(questions())
    assert replay.output_tokens == all_at_once.output_tokens
    assert replay.span_s == (REQUESTS - 1) / STEADY_PER_S


def test_a_saturating_replay_asks_everything_at_once() -> None:
    replay = saturating(questions())
    assert len(replay.requests) == REQUESTS
    assert replay.span_s == 0.0


def test_a_vllm_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found(None) is None
    with pytest.raises(Rejected, match="is no vLLM executable"):
        found(tmp_path / "vllm")
    named = tmp_path / "vllm"
    named.write_text("#!/bin/sh\n")
    named.chmod(0o755)
    assert found(named) == named


async def test_a_question_that_is_not_answered_is_told_in_words() -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": "no backend"}, status=502)

    app = web.Application()
    app.router.add_post("/v1/completions", refuse)
    async with TestServer(app) as server:
        url = str(server.make_url("")).rstrip("/")
        with pytest.raises(Unavailable, match=r"status 502: .*no backend"):
            await right_answers(url, questions()[:1])


def test_scripts_are_told_where_vllm_is_or_why_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="needs Python 3"):
        tell_scripts()
    folder = default_folder()
    folder.mkdir(parents=True)
    (folder / ".complete").touch()
    tell_scripts()
    assert capsys.readouterr().out == f"{folder}/bin/vllm\n"

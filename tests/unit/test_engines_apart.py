"""Engines, models and ranks behind one endpoint: kept apart, told once, never mixed."""

from __future__ import annotations

import pytest

from optiinfra.schemas.deployment import Engine
from optiinfra.schemas.telemetry import Known, UnknownReason
from optiinfra.serving.contracts import contract_for
from optiinfra.serving.scrapes import ScrapeReadings, read
from tests.exposition import TTFT, lines, reading, reason, scrape, value

VLLM, SGLANG = contract_for(Engine.VLLM), contract_for(Engine.SGLANG)


def of(number: int, **values: float) -> str:
    """The small exposition of one engine, without its `# TYPE` lines if it is not the first."""
    text = lines(**values).replace('engine="0"', f'engine="{number}"')
    return "\n".join(x for x in text.splitlines() if not (number and x.startswith("#"))) + "\n"


def of_ttft(number: int, below: int, beyond: int) -> str:
    rows = [("0.5", below), ("1", below + beyond), ("+Inf", below + beyond)]
    buckets = "".join(f'{TTFT}_bucket{{engine="{number}",le="{le}"}} {n}\n' for le, n in rows)
    return f'{buckets}{TTFT}_sum{{engine="{number}"}} {below * 0.25 + beyond * 0.75}\n'


def by_engine(readings: ScrapeReadings, metric: str, **labels: str) -> dict[str, float]:
    engines = [s.labels["engine"] for s in readings.samples if s.metric == f"{metric}_by_engine"]
    return {
        engine: value(readings, f"{metric}_by_engine", engine=engine, **labels)
        for engine in dict.fromkeys(engines)
    }


def test_each_engine_is_told_beside_all_of_them() -> None:
    text = of(0, num_requests_running=2, kv_cache_usage_perc=0.1)
    text += of(1, num_requests_running=6, kv_cache_usage_perc=0.9)
    readings = read(VLLM, "r1", scrape(text))
    assert value(readings, "requests_running") == 8
    assert value(readings, "kv_usage_fraction") == pytest.approx(0.5)
    assert by_engine(readings, "requests_running") == {"0": 2, "1": 6}
    assert by_engine(readings, "kv_usage_fraction") == {"0": 0.1, "1": 0.9}


def test_one_engine_alone_is_told_once() -> None:
    readings = read(VLLM, "r1", scrape(lines(), 10), scrape(lines()))
    assert not [s.metric for s in readings.samples if s.metric.endswith("_by_engine")]


def test_one_engine_that_restarts_does_not_eat_what_the_other_counted() -> None:
    before = of(0, request_success_total=100) + of(1, request_success_total=100)
    now = of(0, request_success_total=10) + of(1, request_success_total=300)
    readings = read(VLLM, "r1", scrape(now, 10), scrape(before))
    assert value(readings, "requests_per_s") == 21
    assert by_engine(readings, "requests_per_s") == {"0": 1, "1": 20}


def test_an_engine_that_comes_later_counts_from_zero() -> None:
    now = of(0, request_success_total=10) + of(1, request_success_total=30)
    readings = read(VLLM, "r1", scrape(now, 10), scrape(of(0, request_success_total=10)))
    assert by_engine(readings, "requests_per_s") == {"0": 0, "1": 3}


def test_latencies_of_engines_are_pooled_and_told_apart() -> None:
    head = f"{lines()}# TYPE {TTFT} histogram\n"
    before = head + of_ttft(0, 0, 0) + of_ttft(1, 50, 50)
    now = head + of_ttft(0, 10, 0) + of_ttft(1, 0, 30)
    readings = read(VLLM, "r1", scrape(now, 10), scrape(before))
    assert value(readings, "ttft_s_bucket", ge="0.0", le="0.5") == 10
    assert value(readings, "ttft_s_bucket", ge="0.5", le="1.0") == 30
    assert value(readings, "ttft_s", quantile="mean") == pytest.approx((2.5 + 22.5) / 40)
    assert by_engine(readings, "ttft_s", quantile="mean") == {"0": 0.25, "1": 0.75}
    of_one = reading(readings, "ttft_s_by_engine", engine="1", quantile="p50")
    assert of_one == Known(value=0.75, error=0.25)


def ranks(tp: int, dp: int | None = None, running: float = 4) -> str:
    dp_rank = "" if dp is None else f',dp_rank="{dp}"'
    labels = f'model_name="m",engine_type="unified",tp_rank="{tp}",pp_rank="0"{dp_rank}'
    return f"sglang:num_running_reqs{{{labels}}} {running}\n"


def test_ranks_that_all_tell_the_same_are_read_once() -> None:
    head = "# TYPE sglang:num_running_reqs gauge\n"
    text = head + "".join(ranks(tp) for tp in (10, 9, 2))
    assert value(read(SGLANG, "r1", scrape(text, version="0.5.1")), "requests_running") == 4
    text = head + ranks(0, 0, 3) + ranks(1, 0, 3) + ranks(10, 1, 99) + ranks(9, 1, 5)
    readings = read(SGLANG, "r1", scrape(text, version="0.5.1"))
    assert value(readings, "requests_running") == 8
    assert by_engine(readings, "requests_running") == {"0": 3, "1": 5}


def two_models() -> str:
    ours = lines(num_requests_running=2).replace('{engine="0"}', '{engine="0",model_name="ours"}')
    other = lines(num_requests_running=9).replace('{engine="0"}', '{engine="0",model_name="b"}')
    return ours + "\n".join(x for x in other.splitlines() if not x.startswith("#")) + "\n"


def test_of_two_models_only_ours_is_read() -> None:
    readings = read(VLLM, "r1", scrape(two_models()), model="ours")
    assert value(readings, "requests_running") == 2


def test_errors_of_the_other_model_are_not_ours() -> None:
    name = "vllm:request_success_total"
    rows = [("ours", "stop", 5), ("b", "stop", 9), ("b", "error", 40)]
    before = f"# TYPE {name} counter\n" + "".join(
        f'{name}{{model_name="{model}",finished_reason="{why}"}} 0\n' for model, why, _ in rows
    )
    now = f"# TYPE {name} counter\n" + "".join(
        f'{name}{{model_name="{model}",finished_reason="{why}"}} {n}\n' for model, why, n in rows
    )
    readings = read(VLLM, "r1", scrape(now, 10), scrape(before), model="ours")
    assert value(readings, "requests_per_s") == 0.5
    assert reason(readings, "errors_per_s") is UnknownReason.NOT_SUPPORTED


@pytest.mark.parametrize("model", [None, "third"])
def test_several_models_of_which_none_is_ours_are_unknown(model: str | None) -> None:
    readings = read(VLLM, "r1", scrape(two_models()), model=model)
    assert reason(readings, "requests_running") is UnknownReason.IMPLAUSIBLE
    gap = next(g for g in readings.gaps if g.metric == "requests_running")
    assert "b, ours; none of them is" in gap.detail


def test_one_model_is_ours_whatever_it_is_called() -> None:
    text = lines().replace('{engine="0"}', '{engine="0",model_name="alias"}')
    readings = read(VLLM, "r1", scrape(text), model="org/long-name")
    assert value(readings, "requests_running") == 2

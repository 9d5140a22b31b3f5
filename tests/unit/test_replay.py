"""A streamed answer, read line by line, and what several times of a replay say together."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

import pytest

from optiinfra.agents.performance.replay import Beside, Incoming, Played, Player, Replay, Watch
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.telemetry import Known, Unknown
from optiinfra.serving.simulation import percentile


def line(*, piece: bool = True, tokens: int | None = None) -> bytes:
    event: dict[str, object] = {"choices": [{"text": "a b"}] if piece else []}
    if tokens is not None:
        event["usage"] = {"completion_tokens": tokens}
    return b"data: " + json.dumps(event).encode() + b"\n"


def test_an_engine_that_counts_as_it_goes_is_believed() -> None:
    """A fast one puts several tokens into one piece: pieces alone would make it look slow."""
    coming = Incoming()
    brought = [coming.take(line(tokens=count), at) for at, count in enumerate((1, 5, 12), 10)]
    assert brought == [1, 4, 7]
    assert coming.take(line(piece=False, tokens=12), 13) == 0
    assert (coming.first_s, coming.last_s, coming.tokens) == (10, 12, 12)
    assert not coming.whole
    assert coming.take(b"data: [DONE]\n", 14) == 0
    assert coming.whole


def test_of_another_engine_the_end_corrects_what_the_pieces_told() -> None:
    coming = Incoming()
    brought = [coming.take(line(), at) for at in (1, 2, 3)]
    assert (brought, coming.tokens) == ([1, 1, 1], None)
    assert coming.take(line(piece=False, tokens=8), 4) == 5
    assert coming.tokens == 8


def test_what_is_no_event_brings_nothing() -> None:
    coming = Incoming()
    assert [coming.take(one, 1.0) for one in (b"\n", b": ping\n", b"event: x\n")] == [0, 0, 0]
    assert coming.first_s is None
    with pytest.raises(ValueError, match="Expecting value"):
        coming.take(b"data: <html>\n", 1.0)


@dataclass
class Machine:
    """How fast it goes at present, and who was served on it."""

    speed: float = 1.0
    served: list[str] = field(default_factory=list)


class Engine(Player):
    """Serves `rate` tokens/s where the machine goes at its usual speed."""

    def __init__(self, name: str, rate: float, machine: Machine, failed: int = 0) -> None:
        self.name, self.rate, self.machine, self.failed = name, rate, machine, failed

    async def play(self, replay: Replay, watch: Watch) -> Played:
        self.machine.served.append(self.name)
        await asyncio.sleep(0.01)
        watch(0.5, self.rate * self.machine.speed)
        tokens = round(self.rate * self.machine.speed)
        played = Played(tokens=tokens, served=1, failed=self.failed)
        played.end(1.0)
        return played


@pytest.mark.parametrize("speed", [1.0, 0.5])
async def test_beside_another_engine_the_machines_pace_makes_no_difference(speed: float) -> None:
    machine = Machine(speed)
    best, new = Beside(Engine("best", 400, machine), 400.0), Engine("new", 300, machine)
    played = await new.measure(Replay(()), lambda *_: False, 0.05, best)
    assert played.tokens_per_s == Known(value=300.0)
    assert machine.served[0] == "new", "it warms up alone"
    turns = machine.served[1:]
    assert turns == ["best", "new"] * (len(turns) // 2)
    assert len(turns) > 2
    alone = await new.measure(Replay(()), lambda *_: False, 0.0)
    assert alone.tokens_per_s == Known(value=300.0 * speed)


async def test_a_trial_is_given_up_for_what_it_serves_at_that_pace() -> None:
    machine, looked = Machine(0.5), []

    def watch(_done: float, rate: float) -> bool:
        looked.append(rate)
        return False

    best = Beside(Engine("best", 400, machine), 400.0)
    await Engine("new", 300, machine).measure(Replay(()), watch, 0.005, best)
    assert looked == [300.0]


async def test_nothing_is_measured_against_an_engine_that_loses_requests() -> None:
    machine = Machine()
    lost = Beside(Engine("best", 400, machine, failed=1), 400.0)
    with pytest.raises(Unavailable, match="measured against lost requests"):
        await Engine("new", 300, machine).measure(Replay(()), lambda *_: False, 0.0, lost)


def test_the_rate_is_that_of_the_fastest_time_and_the_latencies_are_those_of_all() -> None:
    """Two of three times were disturbed: the median, and the mean, would tell of the machine."""
    times = [Played(ttft_s=[ttft], tokens=100) for ttft in (0.2, 0.1, 0.3)]
    for one, took_s in zip(times, (4.0, 1.0, 5.0), strict=True):
        one.end(took_s)
    first, *later = times
    for one in later:
        first.add(one)
    assert first.tokens_per_s == Known(value=100.0)
    assert first.ttft_p95_s == Known(value=percentile([0.1, 0.2, 0.3], 0.95))
    assert isinstance(Played().tokens_per_s, Unknown)

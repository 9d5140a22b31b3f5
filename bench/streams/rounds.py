"""The same streams straight to the engines and through each proxy, in turns; what each adds."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.peers.install import NotInstalled
from bench.streams import proxies
from bench.streams.load import Wanted

PEERS = ("caddy", "nginx")
TIMES = ("ttfb", "delay", "gap")
PERCENTS = (50, 99)
COUNTS = ("answers", "tokens", "lost", "reordered", "broken")
MEASURES = (
    *(f"{name}_p{percent}_ms" for name in TIMES for percent in PERCENTS),
    "cpu_us",
    "waited_us",
)
"""CPU a token, and how long its process was ready to run a token and had no CPU: the box's load."""


@dataclass(frozen=True)
class Setting:
    """How many streams, at what rate, over how many engines, for how long."""

    streams: int = 200
    tokens_per_s: float = 30.0
    tokens: int = 90
    replicas: int = 4
    measure_s: float = 5.0
    rounds: int = 5

    @property
    def answer_s(self) -> float:
        return self.tokens / self.tokens_per_s


@dataclass
class Target:
    """Where the load goes; without a pid there is nothing between."""

    name: str
    urls: Sequence[str]
    pid: int | None = None
    rounds: list[dict[str, float]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))

    async def play(self, load: Process, setting: Setting) -> None:
        assert load.stdin is not None
        assert load.stdout is not None
        ports = [int(url.rpartition(":")[2]) for url in self.urls]
        wanted = Wanted(ports, setting.streams, setting.tokens, setting.answer_s, setting.measure_s)
        used_s, waited_s = spent(self.pid)
        load.stdin.write(json.dumps(asdict(wanted)).encode() + b"\n")
        found = json.loads(await load.stdout.readline())
        used_after_s, waited_after_s = spent(self.pid)
        for name in COUNTS:
            self.counts[name] += found[name]
        times = {
            f"{name}_p{percent}_ms": quantile(found[f"{name}_ms"], percent)
            for name in TIMES
            for percent in PERCENTS
        }
        per_token = 1e6 / max(1, found["tokens"])
        self.rounds.append(
            times
            | {
                "cpu_us": (used_after_s - used_s) * per_token,
                "waited_us": (waited_after_s - waited_s) * per_token,
            }
        )

    def figures(self) -> dict[str, float]:
        return {
            name: round(statistics.median(one[name] for one in self.rounds), 3) for name in MEASURES
        } | self.counts

    def added(self, direct: Target) -> dict[str, float]:
        """The median over rounds of what it took more than the direct way in the same round."""
        return {
            name: round(
                statistics.median(
                    mine[name] - bare[name]
                    for mine, bare in zip(self.rounds, direct.rounds, strict=True)
                ),
                3,
            )
            for name in MEASURES
        }


def quantile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


def spent(pid: int | None) -> tuple[float, float]:
    """Seconds on a CPU and seconds of waiting for one, of a process and its children so far.

    Linux alone tells them.
    """
    used_ns = waited_ns = 0
    if pid is not None:
        root = psutil.Process(pid)
        for one in (root, *root.children(recursive=True)):
            for thread in Path(f"/proc/{one.pid}/task").glob("*/schedstat"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    used, waited, _ = map(int, thread.read_text().split())
                    used_ns += used
                    waited_ns += waited
    return used_ns / 1e9, waited_ns / 1e9


async def streams(setting: Setting) -> dict[str, Any]:
    """Figures of all targets; a peer that cannot be had is None and `reasons` says why."""
    if not Path("/proc/self/schedstat").exists():
        raise SystemExit("the streams need Linux: /proc/self/schedstat is not there")
    reasons: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        targets = await _targets(stack, setting, reasons)
        load = await stack.enter_async_context(
            proxies.process(sys.executable, "-m", "bench.streams.load")
        )
        for number in range(setting.rounds):
            for target in targets[:: 1 if number % 2 else -1]:
                await target.play(load, setting)
    direct, *others = targets
    added = {one.name: one.added(direct) for one in others}
    absent = dict.fromkeys(reasons)
    return {
        **{one.name: one.figures() for one in targets},
        **absent,
        "added": added | absent,
        "ratio": {name: ratio(added["gateway"], added.get(name)) for name in PEERS},
        "reasons": reasons,
        "setting": asdict(setting),
    }


async def _targets(
    stack: AsyncExitStack, setting: Setting, reasons: dict[str, str]
) -> list[Target]:
    arguments = (
        *("--replicas", str(setting.replicas), "--tokens", str(setting.tokens)),
        *("--tokens-per-s", str(setting.tokens_per_s)),
    )
    engine = proxies.module("bench.streams.engine", *arguments)
    urls: list[str] = (await stack.enter_async_context(engine))[1]["urls"]
    pid, url, _ = await stack.enter_async_context(proxies.gateway(urls, _folder(stack)))
    targets = [Target("direct", urls), Target("gateway", [url], pid)]
    for name, start in (("caddy", proxies.caddy), ("nginx", proxies.nginx)):
        try:
            peer_pid, peer_url = await stack.enter_async_context(start(urls, _folder(stack)))
        except NotInstalled as missing:
            reasons[name] = str(missing)
        else:
            targets.append(Target(name, [peer_url], peer_pid))
    return targets


def _folder(stack: AsyncExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory()))


def ratio(ours: dict[str, float], theirs: dict[str, float] | None) -> dict[str, float] | None:
    """What ours adds over what theirs adds; a measure of which one adds nothing has none."""
    if theirs is None:
        return None
    return {
        name: round(ours[name] / theirs[name], 2)
        for name in MEASURES
        if ours[name] > 0 and theirs[name] > 0
    }

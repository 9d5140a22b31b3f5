"""Sagas a second, latency and CPU: ours beside DBOS, Restate and Temporal, in turns on one machine.

Each runs the same saga: 1 KB in, six durable steps, three of them votes in parallel. Ours keeps
inbox, outbox, hash chain and trace besides. `ours_gated` asks two assessors too, and for the finish
in a command of its own, as most changes of a server do. CPU is that of all processes of a
contestant, its servers included. Temporal runs its development server on SQLite, which is not its
production set-up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.our_saga import servers
from bench.peers import install

ROOT = Path(__file__).resolve().parents[1]
COUNTS = {1: 40, 16: 300, 64: 400}
SLOW_COUNTS = {1: 10, 16: 60, 64: 120}
"""For Temporal's development server, which would take minutes a round."""
READY_S = 180.0


@dataclass
class Contestant:
    """A process that runs rounds; `also` are servers of its that are no children of it."""

    name: str
    process: subprocess.Popen[str]
    counts: dict[int, int]
    also: tuple[psutil.Process, ...] = ()
    rounds: dict[int, list[dict[str, float]]] = field(default_factory=dict)

    def until_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if "ready" not in line:
            raise install.NotInstalled(f"it ended at its start with {self.process.wait()}")

    def play(self, in_flight: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        count, before = self.counts[in_flight], self._cpu_s()
        self.process.stdin.write(json.dumps({"in_flight": in_flight, "count": count}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        ordered = sorted(answer["latencies"])
        self.rounds.setdefault(in_flight, []).append(
            {
                "per_s": count / answer["took_s"],
                "p50_ms": statistics.median(ordered) * 1e3,
                "p99_ms": ordered[min(count - 1, int(count * 0.99))] * 1e3,
                "cpu_ms": (self._cpu_s() - before) / count * 1e3,
            }
        )

    def summary(self) -> dict[str, dict[str, float]]:
        """Medians over the rounds: measure by measure, then by sagas in flight."""
        measures = ("per_s", "p50_ms", "p99_ms", "cpu_ms")
        return {
            measure: {
                str(level): round(statistics.median(one[measure] for one in rounds), 2)
                for level, rounds in sorted(self.rounds.items())
            }
            for measure in measures
        }

    def _cpu_s(self) -> float:
        """CPU seconds of all its processes so far; those that have ended are counted no more."""
        total = 0.0
        for root in (psutil.Process(self.process.pid), *self.also):
            for one in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = one.cpu_times()
                    total += times.user + times.system
        return total


@contextlib.contextmanager
def started(name: str, command: list[str], counts: dict[int, int]) -> Iterator[Contestant]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env=environment,
    )  # fmt: skip
    try:
        yield Contestant(name, process, counts)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()


def ours(stack: ExitStack, *options: str) -> Contestant:
    name = "ours_gated" if options else "ours"
    command = [sys.executable, "-m", "bench.our_saga", *options]
    return stack.enter_context(started(name, command, COUNTS))


def ours_gated(stack: ExitStack) -> Contestant:
    return ours(stack, "--gated")


def dbos(stack: ExitStack) -> Contestant:
    python = install.python()
    url = stack.enter_context(servers()).postgres_url
    command = [python, "-m", "bench.peers.dbos_saga", url]
    made = stack.enter_context(started("dbos", command, COUNTS))
    made.also = (_server_behind(url),)
    return made


def restate(stack: ExitStack) -> Contestant:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    command = [
        install.python(), "-m", "bench.peers.restate_saga", install.restate_server(), folder,
    ]  # fmt: skip
    return stack.enter_context(started("restate", command, COUNTS))


def temporal(stack: ExitStack) -> Contestant:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    command = [install.python(), "-m", "bench.peers.temporal_saga", "27233", folder]
    return stack.enter_context(started("temporal", command, SLOW_COUNTS))


def _server_behind(url: str) -> psutil.Process:
    """The process that listens on the URL's port: a child of this one."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(one.laddr.port == port for one in child.net_connections() if one.laddr):
                return child
    raise install.NotInstalled(f"nothing listens on port {port}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="comma-separated, as ours,dbos")
    options = parser.parse_args()
    makers = {
        "ours": ours,
        "dbos": dbos,
        "restate": restate,
        "temporal": temporal,
        "ours_gated": ours_gated,
    }
    chosen = options.only.split(",") if options.only else list(makers)
    reasons: dict[str, str] = {}
    contestants: list[Contestant] = []
    with ExitStack() as stack:
        for name in chosen:
            try:
                made = makers[name](stack)
                made.until_ready()
                contestants.append(made)
            except install.NotInstalled as missing:
                reasons[name] = str(missing)
        for _ in range(options.rounds):
            for level in COUNTS:
                for one in contestants:
                    one.play(level)
    told = {one.name: one.summary() for one in contestants}
    show(told)
    summary: dict[str, object] = {name: told.get(name) for name in makers}
    summary |= {"reasons": reasons, "rounds": options.rounds, "load": os.getloadavg()[0]}
    print(json.dumps(summary))


def show(told: dict[str, dict[str, dict[str, float]]]) -> None:
    print(
        f"{'':<11}{'in flight':>10}{'sagas/s':>9}{'p50 ms':>9}{'p99 ms':>10}{'CPU ms':>8}  ours is"
    )
    mine = told.get("ours")
    for name, found in told.items():
        for level, rate in found["per_s"].items():
            ratio = f"{mine['per_s'][level] / rate:7.1f} x" if mine and name != "ours" else ""
            print(
                f"{name:<11}{level:>10}{rate:>9.1f}{found['p50_ms'][level]:>9.1f}"
                f"{found['p99_ms'][level]:>10.1f}{found['cpu_ms'][level]:>8.2f}  {ratio}"
            )


if __name__ == "__main__":
    main()

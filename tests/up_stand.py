"""Runs `optiinfra up` as a child process on a fleet of emulated engines, for tests."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil
import yaml

from optiinfra.agents.actuators.local import EngineCommand, LocalActuator
from optiinfra.agents.actuators.port import LaunchSpec
from optiinfra.runtime.clouds import engines_dir
from optiinfra.runtime.session import Session, read_session
from optiinfra.runtime.stores import now
from optiinfra.schemas.deployment import Market, Provider
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import Placement
from optiinfra.storage.embedded.credentials import kept_password
from optiinfra.storage.postgres.database import Database, open_database

PROGRAM = (sys.executable, "-m", "optiinfra.runtime.cli")
CARD = "l40s-8b-fp16-tp1"
READY_S = 90.0
ENGINE = (
    *(sys.executable, "-m", "optiinfra.twin.emulator", "--card", CARD, "--model", "{model}"),
    *("--host", "{host}", "--port", "{port}", "--time-scale", "20", "--grace", "1"),
)
FAST = {
    "sense_every_s": 1.0,
    "heartbeat_s": 1.0,
    "lost_after_s": 5.0,
    "stage_shares": [0.5, 1.0],
    "stage_soak_s": [1.0, 1.0],
    "hold_limit_s": 120.0,
    "look_every_s": 1.0,
    "apply_timeout_s": 60.0,
    "drain_timeout_s": 20.0,
    "window_s": 20.0,
    "golden_per_look": 40,
    "baseline_every_s": 5.0,
    "min_gate_samples": 10,
    "load_step_s": 1.0,
    "start_up_s": 10.0,
}


def fleet(**changes: Any) -> dict[str, Any]:
    """A fleet file of two replicas on this machine, priced as a machine that spot sells."""
    content: dict[str, Any] = {
        "mode": "act",
        "clouds": {"local": {"command": list(ENGINE), "emulated": True}},
        "deployments": [
            {
                "id": "chat",
                "model": "emulated-8b",
                "provider": "local",
                "perf_card": CARD,
                "interruptible": True,
                "slo": {"ttft_p95_s": 5.0, "tpot_p95_s": 1.0},
                "start": {"replicas": 2, "instance_type": "g5.xlarge", "region": "us-east-1"},
            }
        ],
        "timing": FAST,
        "sample_fraction": 0.2,
    }
    return {**content, **changes}


@dataclass
class Up:
    """One home, its fleet file, and the process that runs there now."""

    folder: Path
    content: dict[str, Any] = field(default_factory=fleet)
    env: Mapping[str, str] = field(default_factory=dict)
    process: Process | None = None

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def errors(self) -> str:
        """What all runs have said on stderr."""
        return (self.folder / "stderr").read_text()

    async def start(self) -> Session:
        """Starts it and waits until it is ready."""
        before = self._session_written()
        await self.spawn()
        await until(lambda: self._ended() or self._session_written() not in (0, before), READY_S)
        session = read_session(self.home)
        assert session is not None, self.errors[-3000:]
        assert not self._ended(), self.errors[-3000:]
        return session

    async def spawn(self) -> Process:
        config = self.folder / "fleet.yaml"
        config.write_text(yaml.safe_dump(self.content))
        with (self.folder / "stderr").open("ab") as errors:
            self.process = await asyncio.create_subprocess_exec(
                *PROGRAM, "up", "--config", str(config), "--home", str(self.home),
                env=self._environment(), stdout=PIPE, stderr=errors,
            )  # fmt: skip
        return self.process

    async def ended(self, within_s: float) -> int:
        """Its exit code."""
        assert self.process is not None
        async with asyncio.timeout(within_s):
            await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.communicate()

    def left(self) -> list[str]:
        """Processes that this home still has: all of them name it on their command line."""
        return [
            " ".join(line)
            for process in psutil.process_iter(["cmdline"])
            if (line := process.info["cmdline"]) and any(str(self.folder) in word for word in line)
        ]

    def engines(self) -> list[int]:
        """Pids of the engines that this home has launched and that run."""
        pids = [int(path.read_text()) for path in self.home.glob("engines/*/pid")]
        return [pid for pid in pids if _runs(pid)]

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Database]:
        """The home's PostgreSQL, while `up` runs."""
        port = (self.home / "postgres" / "port").read_text().strip()
        password = kept_password(self.home / "postgres", "postgres")
        url = f"postgresql://optiinfra:{password}@127.0.0.1:{port}/optiinfra"
        async with open_database(url, connections=2) as database:
            yield database

    @property
    def nats_url(self) -> str:
        """The home's broker, while `up` runs."""
        port = (self.home / "nats" / "port").read_text().strip()
        return f"nats://optiinfra:{kept_password(self.home / 'nats', 'nats')}@127.0.0.1:{port}"

    async def close(self) -> None:
        """Ends all that is left, whatever the test did."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await self.ended(20)
        down = await asyncio.create_subprocess_exec(
            *PROGRAM, "down", "--home", str(self.home), env=self._environment(), stderr=PIPE
        )
        await down.communicate()

    def _environment(self) -> dict[str, str]:
        ours = {
            "OPTIINFRA_PORTAL_PORT": "0",
            "OPTIINFRA_GATEWAY_PORT": "0",
            "OPTIINFRA_LOG_JSON": "true",
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "OPTIINFRA_"))}
        return {**kept, **ours, **self.env}

    def _ended(self) -> bool:
        return self.process is None or self.process.returncode is not None

    def _session_written(self) -> int:
        try:
            return (self.home / "session.json").stat().st_mtime_ns
        except FileNotFoundError:
            return 0


@asynccontextmanager
async def engines_of_ones_own(up: Up) -> AsyncIterator[None]:
    """Two engines a deployment, in two zones, that were there before `up`; ended with it."""
    up.home.mkdir(mode=0o711)
    declared = [(one["id"], one["model"]) for one in up.content["deployments"]]
    async with httpx.AsyncClient(trust_env=False) as http:
        command = EngineCommand(args=ENGINE, emulated=True)
        actuator = LocalActuator(engines_dir(up.home), command, http, clock=now)
        for deployment, model in declared:
            for zone in ("us-east-1a", "us-east-1b"):
                place = Placement(
                    provider=Provider.LOCAL,
                    instance_type="g5.xlarge",
                    region="us-east-1",
                    zone=zone,
                    market=Market.ON_DEMAND,
                )
                token = derived_id("mine", deployment, zone)
                await actuator.launch(LaunchSpec("default", deployment, model, place, token))
        try:
            yield
        finally:
            await up.close()
            for deployment, _ in declared:
                assert await actuator.replicas("default", deployment) == []


def api(session: Session) -> httpx.AsyncClient:
    """The API as the local operator."""
    return httpx.AsyncClient(
        base_url=f"{session.url}/api/v1",
        headers={"Authorization": f"Bearer {session.token}"},
        trust_env=False,
        timeout=10,
    )


async def answered(url: str, model: str = "emulated-8b") -> int:
    """The status of one streamed request through the gateway, read to its end."""
    body = {"model": model, "prompt": "Question: why?\nAnswer:", "max_tokens": 8, "stream": True}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url.rstrip('/')}/v1/completions", json=body) as answer,
    ):
        text = await answer.text()
        assert answer.status != 200 or "data: [DONE]" in text
        return answer.status


async def until_answered(url: str, model: str = "emulated-8b") -> None:
    """Until a request through the gateway is served: `up` is ready before its engines are."""
    async with asyncio.timeout(READY_S):
        while await answered(url, model) != 200:  # noqa: ASYNC110 - another process tells nobody
            await asyncio.sleep(0.05)


async def until(condition: Callable[[], bool], within_s: float) -> None:
    """Waits for what another process does; `TimeoutError` when it does not."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - another process tells nobody
            await asyncio.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

"""The processes of the story and how they are started, in a home of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import yaml

from optiinfra.demo.children import Child, ChildSpec, Line, child_environment
from optiinfra.demo.scenario import Pace, Play, cast, cloud_plan, fleet_file, load_plan, replay_file
from optiinfra.runtime.gateway_process import GatewayProcess
from optiinfra.runtime.session import Session, read_session

T = TypeVar("T")
_COMMAND = "optiinfra.runtime.cli"
_POLL_S = 0.1
_READY_S = 90.0
_STOP_S = 8.0


class Parts:
    """Starts cloud, OptiInfra and users; as an async context it stops them all at its end."""

    def __init__(self, plays: Sequence[Play], pace: Pace, *, home: Path, seed: int) -> None:
        self._plays = plays
        self._pace = pace
        self._home = home
        self._seed = seed
        self.logs = home / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.children: list[Child] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """All at once, so that an end comes soon; the gateway last, should `up` have left it."""
        await asyncio.gather(*(child.stop(_STOP_S) for child in self.children))
        gateway = GatewayProcess(self._home, host="127.0.0.1", port=0, sample_fraction=0.0)
        await gateway.stop()

    async def cloud(self, hear: Callable[[Line], None]) -> tuple[Child, Line]:
        """The simulated cloud, once all its machines serve, with its addresses."""
        plan = cloud_plan(self._plays, seed=self._seed, log_dir=self.logs)
        path = self._written("cloud.json", plan.model_dump_json())
        ready: asyncio.Future[Line] = asyncio.get_running_loop().create_future()

        def heard(line: Line) -> None:
            if line.get("event") == "ready" and not ready.done():
                ready.set_result(line)
            hear(line)

        env = self._environment()
        cloud = await self._started("cloud", "optiinfra.demo.cloud", [str(path)], env, heard)
        told = await self._first(cloud, ready, "the simulated cloud")
        return cloud, told

    async def optiinfra(self, told: Line) -> Session:
        """OptiInfra on a fleet file for that cloud, once its API answers."""
        content = fleet_file(
            self._plays, self._pace, endpoint_url=told["endpoint_url"], queue_url=told["queue_url"]
        )
        config = self._written("fleet.yaml", yaml.safe_dump(content, sort_keys=False))
        self._written("replay.yaml", yaml.safe_dump(replay_file(self._plays), sort_keys=False))
        env = self._environment(
            OPTIINFRA_HOME=str(self._home),
            OPTIINFRA_CONFIG=str(config),
            OPTIINFRA_PORTAL_PORT="0",
            OPTIINFRA_GATEWAY_PORT="0",
        )
        up = await self._started("up", _COMMAND, ["up"], env, lambda _line: None)
        session = await self._first(up, asyncio.ensure_future(self._session()), "optiinfra up")
        routed = asyncio.ensure_future(self._routed(session))
        await self._first(up, routed, "the gateway's first routes")
        return session

    async def users(self, session: Session, hear: Callable[[Line], None]) -> Child:
        """Begins to replay the trace through the gateway."""
        url = session.gateway_url or ""
        plan = load_plan(self._plays, seed=self._seed, gateway_url=url)
        path = self._written("load.json", plan.model_dump_json())
        env = child_environment()
        return await self._started("users", "optiinfra.demo.load", [str(path)], env, hear)

    async def _started(
        self,
        name: str,
        module: str,
        arguments: list[str],
        env: dict[str, str],
        hear: Callable[[Line], None],
    ) -> Child:
        log_path = self.logs / f"{name}.log"
        child = Child(ChildSpec(name, module, arguments, log_path, hear, env))
        self.children.append(child)
        await child.start()
        return child

    async def _first(self, child: Child, wanted: asyncio.Future[T], what: str) -> T:
        """What is waited for, unless the child ends or the time does."""
        alive: asyncio.Future[object] = asyncio.ensure_future(child.must_live())
        waiting: set[asyncio.Future[Any]] = {alive, wanted}
        try:
            await asyncio.wait(waiting, timeout=_READY_S, return_when=asyncio.FIRST_COMPLETED)
            if wanted.done():
                return wanted.result()
            if alive.done():
                await alive
            raise child.late(what, _READY_S)
        finally:
            for task in waiting:
                task.cancel()

    async def _session(self) -> Session:
        while True:
            found = read_session(self._home)
            if found is not None:
                return found
            await asyncio.sleep(_POLL_S)

    async def _routed(self, session: Session) -> None:
        """Waits until the gateway has routes for every deployment."""
        wanted = {role.model for role in cast(self._plays)}
        url = f"{(session.gateway_url or '').rstrip('/')}/v1/models"
        async with httpx.AsyncClient(timeout=5.0, trust_env=False) as http:
            while True:
                with suppress(httpx.TransportError):
                    rows = (await http.get(url)).json()["data"]
                    if wanted <= {row["id"] for row in rows}:
                        return
                await asyncio.sleep(_POLL_S)

    def _written(self, name: str, text: str) -> Path:
        path = self._home / name
        path.write_text(text, encoding="utf-8")
        return path

    def _environment(self, **extra: str) -> dict[str, str]:
        """Credentials that only a simulated cloud accepts; nobody's own are within reach."""
        nowhere = str(self._home / "no-aws-config")
        return child_environment(
            AWS_ACCESS_KEY_ID="simulated",
            AWS_SECRET_ACCESS_KEY="simulated",  # noqa: S106 - moto takes anything
            AWS_EC2_METADATA_DISABLED="true",
            AWS_CONFIG_FILE=nowhere,
            AWS_SHARED_CREDENTIALS_FILE=nowhere,
            **extra,
        )

"""Runs engines as processes on this machine, and finds them again after a restart."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated

import httpx
import psutil
import structlog
from pydantic import AwareDatetime, Field, ValidationError

from optiinfra.agents.actuators.health import probed
from optiinfra.agents.actuators.port import Launched, LaunchSpec, NoCapacity, replica_name
from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import Instance, Provider, Replica, ReplicaState
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import Placement
from optiinfra.serving.engines import EngineConfig
from optiinfra.serving.launch import arguments

_CLAIM = 'set -C; echo "$$" > "$0" || exit 75; exec "$@"'
"""The child writes its own pid before it becomes the engine, and only the first child can: so a
launcher that dies in between leaves either nothing or a process that is found again."""
ENGINE_ARGUMENTS = "{engine_arguments}"
_POLL_S = 0.02
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """How to start an engine; `{port}`, `{host}`, `{model}`, `{replica}`, `{deployment}`, `{token}`
    and `{instance_type}` are filled into each argument.

    An argument `{engine_arguments}` becomes the flags of the configuration that a launch comes
    with, as `engine_version` has them; program, model and address stand in the command itself.
    `models` gives other arguments to some of the models. `slots` is how many engines fit here.
    """

    args: Sequence[str]
    models: Mapping[str, Sequence[str]] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    emulated: bool = False
    slots: int = 16
    host: str = "127.0.0.1"
    engine_version: str | None = None

    def filled(
        self, spec: LaunchSpec, replica: str, port: int, engine: EngineConfig | None
    ) -> list[str]:
        """Program and arguments. Raises `Rejected` for what cannot be started."""
        flags = self.flags(spec.model, engine) if engine is not None else ()
        words: list[str] = []
        for arg in self._args(spec.model):
            if arg == ENGINE_ARGUMENTS:
                words += flags
            else:
                weights = engine.model if engine is not None else spec.model
                words.append(self._word(arg, spec, replica, port, weights))
        return words

    def flags(self, model: str, engine: EngineConfig) -> tuple[str, ...]:
        """What `{engine_arguments}` becomes. Raises `Rejected` when it is not there to become it,
        or when the engine would refuse it."""
        if ENGINE_ARGUMENTS not in self._args(model):
            raise Rejected(
                f"the engine command takes no configuration: it has no {ENGINE_ARGUMENTS}",
                hint=f"put {ENGINE_ARGUMENTS} into clouds.local.command, in place of such flags",
            )
        return arguments(engine, self.engine_version)

    def _args(self, model: str) -> Sequence[str]:
        return self.models.get(model, self.args)

    def _word(self, arg: str, spec: LaunchSpec, replica: str, port: int, weights: str) -> str:
        values = {
            "port": str(port),
            "host": self.host,
            "model": spec.model,
            "weights": weights,
            "replica": replica,
            "deployment": spec.deployment,
            "token": spec.token,
            "instance_type": spec.placement.instance_type,
        }
        try:
            return arg.format(**values)
        except (KeyError, IndexError, ValueError) as error:
            raise Rejected(
                f"the engine command has a bad placeholder: {error!r}",
                hint=f"use only {', '.join('{' + name + '}' for name in values)}",
            ) from error


class EngineRecord(Value):
    """What is kept of one launch; the pid stands in a file of its own, written by the child."""

    tenant: str
    deployment: str
    replica: str
    token: str
    port: int
    placement: Placement
    engine: Annotated[EngineConfig, Field(discriminator="engine")] | None = None
    launched_at: AwareDatetime


class LocalActuator:
    """Processes behind the `Actuator` port; the state directory is the whole memory.

    One directory a launch token holds `engine.json`, `pid`, `birth` (the start time that tells the
    process from a later one with its pid) and `log`.
    """

    def __init__(
        self,
        state_dir: Path,
        command: EngineCommand,
        http: httpx.AsyncClient,
        *,
        clock: Callable[[], datetime],
        start_up_s: float = 120.0,
        stop_s: float = 10.0,
    ) -> None:
        self._dir = state_dir
        self._command = command
        self._http = http
        self._clock = clock
        self._start_up = timedelta(seconds=start_up_s)
        self._stop_s = stop_s
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = asyncio.Lock()

    async def replicas(self, tenant: str, deployment: str) -> Sequence[Replica]:
        alive = [
            record
            for record in self._records()
            if (record.tenant, record.deployment) == (tenant, deployment) and self._process(record)
        ]
        return await asyncio.gather(*(self._observed(record) for record in alive))

    async def replica(self, tenant: str, deployment: str, replica_id: str) -> Replica | None:
        record = self._find(tenant, deployment, replica_id)
        return await self._observed(record) if record else None

    async def launch(self, spec: LaunchSpec) -> Launched:
        """As the port says. `NoCapacity` when all slots are taken, `Rejected` when the command
        cannot be run; a process of this token that has ended is returned as stopped."""
        if spec.placement.provider is not Provider.LOCAL:
            raise Rejected(f"the local actuator cannot launch on {spec.placement.provider}")
        async with self._lock:
            created = _pid(self._home(spec.token)) is None
            if created:
                self._require_slot()
                await self._start(spec)
        record = self._read(self._home(spec.token))
        if record is None:
            raise Unavailable(f"the record of launch {spec.token} is gone")
        return Launched(await self._observed(record), created, record.placement.market)

    async def terminate(self, tenant: str, deployment: str, replica_id: str) -> bool:
        record = self._find(tenant, deployment, replica_id)
        if record is None:
            return False
        process = self._process(record)
        if process is not None:
            await self._stop(record, process)
        return True

    def forget(self, tenant: str, deployment: str) -> None:
        """Removes what is kept of the launches of a deployment that have ended."""
        for record in self._records():
            ours = (record.tenant, record.deployment) == (tenant, deployment)
            if ours and self._process(record) is None:
                shutil.rmtree(self._home(record.token))

    def require_launchable(self, model: str, engine: EngineConfig) -> None:
        self._command.flags(model, engine)

    async def engine(self, tenant: str, deployment: str, replica_id: str) -> EngineConfig | None:
        record = self._find(tenant, deployment, replica_id)
        return record.engine if record else None

    async def _start(self, spec: LaunchSpec) -> None:
        home = self._home(spec.token)
        record = self._recorded(home, spec)
        args = self._command.filled(spec, record.replica, record.port, record.engine)
        if shutil.which(args[0]) is None:
            raise Rejected(f"{args[0]!r} cannot be run", hint="check the engine command")
        args = ["env", *(f"{name}={value}" for name, value in self._command.env.items()), *args]
        with (home / "log").open("ab") as log:
            self._children[spec.token] = subprocess.Popen(  # noqa: S603, ASYNC220 - execs at once
                ["/bin/sh", "-c", _CLAIM, str(home / "pid"), *args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if not await _until(lambda: _pid(home) is not None, self._stop_s):
            raise Unavailable(f"no process has claimed {home}")
        self._note_birth(home)
        _log.info("local.launched", replica=record.replica, port=record.port, args=shlex.join(args))

    def _recorded(self, home: Path, spec: LaunchSpec) -> EngineRecord:
        """The one record of the launch: a second launcher takes over that of the first."""
        home.mkdir(parents=True, exist_ok=True)
        record = EngineRecord(
            tenant=spec.tenant,
            deployment=spec.deployment,
            replica=replica_name(spec.deployment, spec.token),
            token=spec.token,
            port=_free_port(self._command.host),
            placement=spec.placement,
            engine=spec.engine or self._engine_like(spec),
            launched_at=self._clock(),
        )
        with NamedTemporaryFile("w", dir=home, suffix=".partial") as partial:
            partial.write(record.model_dump_json())
            partial.flush()
            with suppress(FileExistsError):
                os.link(partial.name, home / "engine.json")
        return self._read(home) or record

    def _engine_like(self, spec: LaunchSpec) -> EngineConfig | None:
        """A tuned replica's successor stays tuned, also on a machine of another kind."""
        if spec.like is None:
            return None
        record = self._find(spec.tenant, spec.deployment, spec.like.id)
        return record.engine if record else None

    def _note_birth(self, home: Path) -> None:
        pid = _pid(home)
        if pid is None or (home / "birth").exists():
            return
        with suppress(psutil.NoSuchProcess):
            _write(home / "birth", repr(psutil.Process(pid).create_time()))

    def _process(self, record: EngineRecord) -> psutil.Process | None:
        """The engine's process if it runs; a later process with its pid is not taken for it."""
        home = self._home(record.token)
        pid = _pid(home)
        if pid is None:
            return None
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                self._reap(record.token)
                return None
            born = process.create_time()
        except psutil.NoSuchProcess:
            return None
        return process if _same_birth(home, born) else None

    async def _observed(self, record: EngineRecord) -> Replica:
        process = self._process(record)
        replica = Replica(
            id=record.replica,
            deployment=record.deployment,
            state=ReplicaState.STOPPED,
            url=f"http://{self._command.host}:{record.port}",
            instance=_instance(record, process.pid if process else None),
            launch_token=record.token,
            emulated=self._command.emulated,
        )
        if process is None:
            return replica
        young = self._clock() - record.launched_at < self._start_up
        return await probed(self._http, replica, young=young)

    async def _stop(self, record: EngineRecord, process: psutil.Process) -> None:
        """SIGTERM to the group, SIGKILL after `stop_s`; reads back that it is gone."""
        for step in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, step)
            if await _until(lambda: self._process(record) is None, self._stop_s):
                _log.info("local.terminated", replica=record.replica, signal=step.name)
                return
        raise Unavailable(f"process {process.pid} of {record.replica} does not end")

    def _reap(self, token: str) -> None:
        """Takes leave of a child that was seen to have ended; until then its pid stays its own."""
        child = self._children.get(token)
        if child is not None and child.poll() is not None:
            del self._children[token]

    def _require_slot(self) -> None:
        running = sum(1 for record in self._records() if self._process(record))
        if running >= self._command.slots:
            raise NoCapacity(f"all {self._command.slots} places for engines are taken")

    def _find(self, tenant: str, deployment: str, replica_id: str) -> EngineRecord | None:
        for record in self._records():
            named = (record.tenant, record.deployment, record.replica)
            if named == (tenant, deployment, replica_id) and self._process(record):
                return record
        return None

    def _records(self) -> list[EngineRecord]:
        homes = sorted(self._dir.iterdir()) if self._dir.exists() else []
        return [record for home in homes if (record := self._read(home)) is not None]

    def _read(self, home: Path) -> EngineRecord | None:
        try:
            return EngineRecord.model_validate_json((home / "engine.json").read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise Rejected(
                f"{home / 'engine.json'} is unreadable",
                hint="stop its engine and remove the folder",
            ) from error

    def _home(self, token: str) -> Path:
        return self._dir / derived_id(token)


def _instance(record: EngineRecord, pid: int | None) -> Instance:
    return Instance(
        id=f"local-{pid}" if pid else f"local-ended-{record.replica}",
        provider=Provider.LOCAL,
        instance_type=record.placement.instance_type,
        region=record.placement.region,
        zone=record.placement.zone or "local",
        market=record.placement.market,
        launched_at=record.launched_at.astimezone(UTC),
    )


async def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Polls the operating system, which tells nobody; whether `condition` held in time."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True


def _pid(home: Path) -> int | None:
    try:
        return int((home / "pid").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _same_birth(home: Path, born: float) -> bool:
    """Whether a process born at `born`, s since the epoch, is the one that wrote the pid.

    A launcher that died before it noted the birth leaves the time at which the pid was written,
    within moments of the birth.
    """
    try:
        return abs(born - float((home / "birth").read_text())) < 1.0
    except (FileNotFoundError, ValueError):
        return abs(born - (home / "pid").stat().st_mtime) < 5.0


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])

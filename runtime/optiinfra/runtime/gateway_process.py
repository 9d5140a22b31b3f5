"""The gateway that `optiinfra up` runs: a process of its own, which outlives a crash of ours."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import httpx
import psutil
import structlog
from pydantic import ValidationError

from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Unavailable

log = structlog.get_logger()

_POLL_S = 0.05
_START_S = 60.0


class GatewayRecord(Value):
    """What is kept in `<home>/gateway.json` (0600): enough to find and to stop it again."""

    pid: int
    started: float
    url: str
    admin_url: str
    admin_token: str
    bus: str
    """Fingerprint of the bus address that it was started with."""


class GatewayProcess:
    """Starts the gateway of one home, or takes over the one that still runs there."""

    def __init__(self, home: Path, *, host: str, port: int, sample_fraction: float) -> None:
        self._home = home.absolute()
        self._file = self._home / "gateway.json"
        self._starting = self._home / "gateway.starting"
        self._host = host
        self._port = port
        self._sample_fraction = sample_fraction

    async def ensure(self, nats_url: str) -> GatewayRecord:
        """A running gateway. Raises `Unavailable` with its last words when it does not start."""
        await self._end_half_started()
        found = self._read()
        bus = sha256(nats_url.encode()).hexdigest()
        if found is not None and _process(found) is not None:
            if found.bus == bus and await _answers(found):
                log.info("gateway.taken_over", pid=found.pid, url=found.url)
                return found
            await self._stop(found)
        token = found.admin_token if found else secrets.token_urlsafe(32)
        port = int(found.url.rpartition(":")[2]) if found and not self._port else self._port
        return await self._start(nats_url, token, port, bus)

    async def stop(self) -> bool:
        """Ends it gracefully; False when none ran."""
        half = await self._end_half_started()
        found = self._read()
        if found is None or _process(found) is None:
            return half
        await self._stop(found)
        return True

    async def _start(self, nats_url: str, token: str, port: int, bus: str) -> GatewayRecord:
        announce = self._home / "gateway.announce"
        announce.unlink(missing_ok=True)
        (self._home / "logs").mkdir(parents=True, exist_ok=True)
        log_path = self._home / "logs" / "gateway.log"
        with log_path.open("ab") as output:
            child = subprocess.Popen(  # noqa: ASYNC220, S603 - returns at once; our own module
                [
                    *(sys.executable, "-m", "optiinfra.runtime.gateway_main"),
                    *("--announce", str(announce), "--state-dir", str(self._home / "gateway")),
                    *("--host", self._host, "--port", str(port)),
                    *("--sample-fraction", str(self._sample_fraction)),
                ],
                env={
                    **os.environ,
                    "OPTIINFRA_NATS_URL": nats_url,
                    "OPTIINFRA_GATEWAY_ADMIN_TOKEN": token,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = psutil.Process(child.pid).create_time()
        write_private(self._starting, f"{child.pid} {started}")
        told = await self._announced(child, announce, log_path)
        record = GatewayRecord(
            pid=child.pid,
            started=started,
            url=told["url"],
            admin_url=told["admin_url"],
            admin_token=token,
            bus=bus,
        )
        write_private(self._file, record.model_dump_json())
        self._starting.unlink(missing_ok=True)
        child.returncode = 0  # it is meant to outlive this object, which would warn of that
        log.info("gateway.started", pid=record.pid, url=record.url)
        return record

    async def _announced(
        self, child: subprocess.Popen[bytes], announce: Path, log_path: Path
    ) -> dict[str, str]:
        try:
            async with asyncio.timeout(_START_S):
                while not announce.exists():
                    if child.poll() is not None:
                        raise Unavailable(f"the gateway did not start: {_last_words(log_path)}")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as late:
            _killed(child)
            raise Unavailable(f"the gateway did not start within {_START_S:g} s") from late
        except asyncio.CancelledError:
            _killed(child)
            raise
        told: dict[str, str] = json.loads(announce.read_text())
        return told

    async def _end_half_started(self) -> bool:
        """Ends a gateway whose starter was killed before it could write the record."""
        try:
            pid, started = self._starting.read_text().split()
        except (FileNotFoundError, ValueError):
            return False
        process = _same(int(pid), float(started))
        if process is not None:
            log.warning("gateway.half_started", pid=process.pid)
            process.kill()
            await asyncio.to_thread(process.wait, 5)
        self._starting.unlink(missing_ok=True)
        return process is not None

    async def _stop(self, record: GatewayRecord) -> None:
        process = _process(record)
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, 10)
        except psutil.TimeoutExpired:
            log.warning("gateway.killed", pid=record.pid)
            process.kill()
            await asyncio.to_thread(process.wait, 5)

    def _read(self) -> GatewayRecord | None:
        try:
            return GatewayRecord.model_validate_json(self._file.read_text())
        except FileNotFoundError:
            return None
        except ValidationError as broken:
            log.warning("gateway.record_unreadable", path=str(self._file), reason=str(broken))
            return None


def _killed(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, wholly or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.replace(path)


def _process(record: GatewayRecord) -> psutil.Process | None:
    return _same(record.pid, record.started)


def _same(pid: int, started: float) -> psutil.Process | None:
    """The process that was started then, never a later one with its number."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


async def _answers(record: GatewayRecord) -> bool:
    try:
        async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
            answer = await client.get(f"{record.admin_url}/healthz")
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK


def _last_words(path: Path, lines: int = 5) -> str:
    return " | ".join(path.read_text(errors="replace").splitlines()[-lines:])

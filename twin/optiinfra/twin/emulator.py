"""The engine emulator: an OpenAI-compatible server that takes its step times from a perf card."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from pydantic import Field, ValidationError

from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import OptiInfraError, Rejected
from optiinfra.serving.cards import card_names, load_card
from optiinfra.serving.scheduler import SchedulerConfig
from optiinfra.twin.defects import Defect
from optiinfra.twin.endpoints import VERSION, Emulation, Endpoints


class EmulatorConfig(Value):
    """How to emulate one replica.

    `card` names a shipped perf card, `port` 0 takes a free one, `time_scale` divides every step
    time, and `grace_s` is how long requests under way may take after a stop.
    """

    card: str = "h100-8b-fp16-tp1"
    model: str = "emulated-model"
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    seed: int = 0
    time_scale: float = Field(default=1.0, gt=0, le=1000)
    grace_s: float = Field(default=30.0, ge=0)
    scheduler: SchedulerConfig = SchedulerConfig()
    defect: Defect = Defect()


class EmulatorServer:
    """One emulated replica in this process: `async with EmulatorServer(config) as server`.

    Starting raises `NotFound` for an unknown card and `OSError` for a port that is taken.
    """

    def __init__(self, config: EmulatorConfig | None = None) -> None:
        self.config = config or EmulatorConfig()
        self.port = 0
        self._endpoints: Endpoints | None = None
        self._runner: web.AppRunner | None = None
        self._driver: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Base URL, without a slash at the end."""
        return f"http://{self.config.host}:{self.port}"

    @property
    def endpoints(self) -> Endpoints:
        """The running engine's face; raises `Rejected` before the start."""
        if self._endpoints is None:
            raise Rejected("the emulator is not running")
        return self._endpoints

    async def start(self) -> None:
        """Listen and serve."""
        config = self.config
        emulation = Emulation(
            card=load_card(config.card),
            model=config.model,
            seed=config.seed,
            time_scale=config.time_scale,
            scheduler=config.scheduler,
            defect=config.defect,
        )
        self._endpoints = Endpoints(emulation)
        self._runner = web.AppRunner(
            self._endpoints.app(),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=config.grace_s,
        )
        await self._runner.setup()
        self._driver = asyncio.create_task(self._endpoints.engine.run(), name="emulated-engine")
        site = web.TCPSite(self._runner, config.host, config.port)
        try:
            await site.start()
        except OSError:
            await self.stop()
            raise
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Take no more connections, let requests under way finish within the grace, and end."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._driver is not None:
            self._driver.cancel()
            with suppress(asyncio.CancelledError):
                await self._driver
            self._driver = None

    def degrade(self, defect: Defect) -> None:
        """Behave like this from now on, as `POST /emulator/defect` does."""
        self.endpoints.degrade(defect)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()


async def serve(config: EmulatorConfig, announce: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT; the bound port goes to stdout and to `announce` as JSON."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with EmulatorServer(config) as server:
        _announce(server, announce)
        await stopped.wait()
    _say({"event": "stopped", "port": server.port})


def _announce(server: EmulatorServer, path: Path | None) -> None:
    line = {
        "event": "serving",
        "port": server.port,
        "url": server.url,
        "pid": os.getpid(),
        "model": server.config.model,
        "card": server.config.card,
        "version": VERSION,
        "emulator": True,
    }
    if path is not None:
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(line) + "\n", "utf-8")
        fresh.replace(path)
    _say(line)


def _say(line: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):
        print(json.dumps(line), flush=True)


def _arguments(argv: Sequence[str] | None) -> tuple[EmulatorConfig, Path | None]:
    parser = argparse.ArgumentParser(prog="optiinfra.twin.emulator", description=__doc__)
    engine, defaults = SchedulerConfig(), EmulatorConfig()
    parser.add_argument("--card", default=defaults.card, help=f"one of {', '.join(card_names())}")
    parser.add_argument("--model", default=defaults.model, help="name that requests ask for")
    parser.add_argument("--host", default=defaults.host)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-scale", type=float, default=1.0, help="how many times as fast")
    parser.add_argument("--grace", type=float, default=defaults.grace_s, help="seconds, at a stop")
    parser.add_argument("--max-num-seqs", type=int, default=engine.max_num_seqs)
    parser.add_argument("--max-num-batched-tokens", type=int, default=engine.max_num_batched_tokens)
    parser.add_argument("--max-model-len", type=int, default=engine.max_model_len)
    parser.add_argument("--kv-tokens", type=int, help="KV capacity, instead of the card's")
    parser.add_argument(
        "--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True
    )
    parser.add_argument("--defect", default="{}", help="JSON, as POST /emulator/defect takes it")
    parser.add_argument("--announce", type=Path, help="file to write the bound port to")
    given = parser.parse_args(argv)
    try:
        return _config(given), given.announce
    except (ValidationError, OptiInfraError) as error:
        parser.error(str(error))


def _config(given: argparse.Namespace) -> EmulatorConfig:
    load_card(given.card)
    scheduler = SchedulerConfig(
        max_num_seqs=given.max_num_seqs,
        max_num_batched_tokens=given.max_num_batched_tokens,
        max_model_len=given.max_model_len,
        kv_tokens=given.kv_tokens,
        enable_prefix_caching=given.enable_prefix_caching,
    )
    return EmulatorConfig(
        card=given.card,
        model=given.model,
        host=given.host,
        port=given.port,
        seed=given.seed,
        time_scale=given.time_scale,
        grace_s=given.grace,
        scheduler=scheduler,
        defect=Defect.model_validate_json(given.defect),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the emulator until it is told to stop; exit status 1 when it cannot listen."""
    config, announce = _arguments(argv)
    try:
        asyncio.run(serve(config, announce))
    except OSError as error:
        _say({"event": "failed", "error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What the actuator of local processes does that no other does."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from optiinfra.agents.actuators.local import EngineCommand, LocalActuator
from optiinfra.agents.actuators.port import NoCapacity
from optiinfra.schemas.deployment import Provider, ReplicaState
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import derived_id
from optiinfra.serving.engines import VllmConfig
from tests.actuator_stand import aws, local, now, spec


async def test_another_actuator_adopts_the_engines_that_it_finds(tmp_path: Path) -> None:
    async with local(tmp_path) as first:
        replica = (await first.launch(spec(Provider.LOCAL))).replica
        async with local(tmp_path) as second:
            again = await second.launch(spec(Provider.LOCAL))
            assert not again.created
            assert again.replica.instance.id == replica.instance.id
            assert await second.terminate("acme", "chat", replica.id)
        assert await first.replica("acme", "chat", replica.id) is None


async def test_a_later_process_with_the_same_pid_is_not_taken_for_the_engine(
    tmp_path: Path,
) -> None:
    async with local(tmp_path) as actuator:
        replica = (await actuator.launch(spec(Provider.LOCAL))).replica
        home = tmp_path / "engines" / derived_id(derived_id("one"))
        pid = int((home / "pid").read_text())
        birth = home / "birth"
        noted = birth.read_text()
        birth.write_text("1.0")
        assert await actuator.replica("acme", "chat", replica.id) is None
        assert not await actuator.terminate("acme", "chat", replica.id)
        assert psutil.pid_exists(pid)
        birth.unlink()
        assert await actuator.replica("acme", "chat", replica.id) is not None
        birth.write_text(noted)


async def test_an_engine_that_ignores_the_polite_signal_is_killed(tmp_path: Path) -> None:
    deaf = ("/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.05; done", "{port}")
    async with httpx.AsyncClient() as http:
        actuator = LocalActuator(tmp_path, EngineCommand(deaf), http, clock=now, stop_s=0.5)
        replica = (await actuator.launch(spec(Provider.LOCAL))).replica
        assert replica.state is ReplicaState.STARTING
        assert await actuator.terminate("acme", "chat", replica.id)
        assert await actuator.replica("acme", "chat", replica.id) is None


async def test_an_engine_that_ends_by_itself_is_stopped_and_can_be_forgotten(
    tmp_path: Path,
) -> None:
    args = ("/bin/sh", "-c", 'test "$KEY" = value', "{model}")
    async with httpx.AsyncClient() as http:
        command = EngineCommand(args, env={"KEY": "value"})
        actuator = LocalActuator(tmp_path, command, http, clock=now)
        launched = await actuator.launch(spec(Provider.LOCAL))
        async with asyncio.timeout(10):
            while await actuator.replica("acme", "chat", launched.replica.id):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        again = await actuator.launch(spec(Provider.LOCAL))
        assert (again.created, again.replica.state) == (False, ReplicaState.STOPPED)
        actuator.forget("acme", "chat")
        assert not any(tmp_path.iterdir())


async def test_full_slots_and_bad_commands_are_refused(tmp_path: Path) -> None:
    async with local(tmp_path, slots=1) as actuator:
        await actuator.launch(spec(Provider.LOCAL))
        with pytest.raises(NoCapacity):
            await actuator.launch(replace(spec(Provider.LOCAL), token=derived_id("two")))
        with pytest.raises(Rejected, match="cannot launch on aws"):
            await actuator.launch(spec(Provider.AWS))
    other = replace(spec(Provider.LOCAL), token=derived_id("three"))
    async with local(tmp_path, args=("{nonsense}",)) as actuator:
        with pytest.raises(Rejected, match="bad placeholder"):
            await actuator.launch(other)
    async with local(tmp_path, args=("no-such-engine",)) as actuator:
        with pytest.raises(Rejected, match="cannot be run"):
            await actuator.launch(other)


async def test_an_engine_is_started_with_the_flags_of_its_configuration_and_so_are_its_successors(
    tmp_path: Path,
) -> None:
    engine = VllmConfig(model="m", max_num_seqs=7, prefix_caching=False)
    waits = ("/bin/sh", "-c", "while :; do sleep 0.05; done", "{port}", "{engine_arguments}")
    async with local(tmp_path, args=waits) as actuator:
        plain = await actuator.launch(spec(Provider.LOCAL))
        assert await actuator.engine("acme", "chat", plain.replica.id) is None
        tuned = replace(spec(Provider.LOCAL), token=derived_id("tuned"), engine=engine)
        first = (await actuator.launch(tuned)).replica
        words = psutil.Process(int(first.instance.id.removeprefix("local-"))).cmdline()
        assert words[-3:] == ["--max-num-seqs", "7", "--no-enable-prefix-caching"]
        like = replace(spec(Provider.LOCAL), token=derived_id("next"), like=first)
        successor = (await actuator.launch(like)).replica
        assert await actuator.engine("acme", "chat", successor.id) == engine


async def test_an_engine_that_ends_while_it_is_looked_at_is_reaped_by_that_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dies(psutil.Process):
        def status(self) -> Any:
            self.kill()
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            return super().status()

    async with local(tmp_path) as actuator:
        replica = (await actuator.launch(spec(Provider.LOCAL))).replica
        pid = int(replica.instance.id.removeprefix("local-"))
        with monkeypatch.context() as patch:
            patch.setattr(psutil, "Process", Dies)
            assert list(await actuator.replicas("acme", "chat")) == []
        assert not psutil.pid_exists(pid)


async def test_a_configuration_that_reaches_no_engine_is_refused(
    tmp_path: Path, cloud: Any
) -> None:
    engine = VllmConfig(model="m", max_num_seqs=8, max_num_batched_tokens=4)
    async with local(tmp_path) as actuator:
        with pytest.raises(Rejected, match="takes no configuration"):
            actuator.require_launchable("m", engine)
    async with local(tmp_path, args=("x", "{engine_arguments}")) as actuator:
        with pytest.raises(Rejected, match="would not start"):
            actuator.require_launchable("m", engine)
    with pytest.raises(Rejected, match="cannot launch an engine with a configuration"):
        await aws(cloud).launch(replace(spec(Provider.AWS), engine=engine))


async def test_an_unreadable_record_is_named(tmp_path: Path) -> None:
    home = tmp_path / "engines" / "broken"
    home.mkdir(parents=True)
    async with httpx.AsyncClient() as http:
        actuator = LocalActuator(tmp_path / "engines", EngineCommand(("x",)), http, clock=now)
        assert list(await actuator.replicas("acme", "chat")) == []
        (home / "engine.json").write_text("{")
        with pytest.raises(Rejected, match="unreadable"):
            await actuator.replicas("acme", "chat")

"""A subscriber with nothing but the kit and its two packages, over a restart of the broker."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from optiinfra.storage.embedded.nats import NatsServer
from tests.bus_stand import stand

ROOT = Path(__file__).parents[2]
SUBSCRIBER = """
import asyncio, json, sys
from contextlib import aclosing
from optiinfra.events.facts import ChangeResumed
from optiinfra.events.subscribe import subscribe

async def main(url, since, count):
    events = subscribe(url, subjects=("change.*",), since_sequence=since)
    async with aclosing(events):
        async for received in events:
            assert isinstance(received.event.fact, ChangeResumed)
            print(json.dumps([received.sequence, received.event.id]), flush=True)
            count -= 1
            if not count:
                break
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})), flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


def _environment(folder: Path) -> None:
    """What `pip install -r requirements/client.txt` and the two rooms would bring, as links."""
    listed = (ROOT / "requirements/client.txt").read_text()
    pinned = re.findall(r"^([a-z0-9_-]+)==", listed, re.MULTILINE)
    assert {"nats-py", "pydantic"} <= set(pinned)
    for name in pinned:
        files = metadata.files(name) or []
        for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}:
            (folder / top).symlink_to(Path(str(metadata.distribution(name).locate_file(top))))
    (folder / "optiinfra").mkdir()
    for room in ("schemas", "events"):
        (folder / "optiinfra" / room).symlink_to(ROOT / room / "optiinfra" / room)


async def _start(folder: Path, *arguments: object) -> asyncio.subprocess.Process:
    # Without `site` the interpreter sees its standard library and this folder alone.
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-S",
        "-c",
        SUBSCRIBER,
        *map(str, arguments),
        env={"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=asyncio.subprocess.PIPE,
    )


async def _lines(process: asyncio.subprocess.Process, count: int) -> list[list[object]]:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        return [json.loads(await process.stdout.readline()) for _ in range(count)]


async def test_a_subscriber_in_its_own_environment_misses_and_doubles_nothing(
    nats_server: Callable[[], NatsServer], tmp_path: Path
) -> None:
    _environment(tmp_path)
    server = nats_server()
    async with stand(server.url) as s:
        said = await s.say(20)
        process = await _start(tmp_path, server.url, 0, 40)
        try:
            received = await _lines(process, 20)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            said += await s.say(20)
            received += await _lines(process, 20)
            modules = (await _lines(process, 1))[0]
            assert await asyncio.wait_for(process.wait(), 10) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert sorted(str(one[1]) for one in received) == sorted(event.id for event in said)
        assert {"nats", "pydantic", "optiinfra"} <= set(modules)
        assert not {"sqlalchemy", "structlog", "fastapi", "boto3", "httpx"} & set(modules)

        again = await _start(tmp_path, server.url, received[29][0], 10)
        try:
            assert await _lines(again, 10) == received[30:]
            assert await asyncio.wait_for(again.wait(), 10) == 0
        finally:
            if again.returncode is None:
                again.kill()
                await again.wait()

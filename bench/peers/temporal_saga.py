"""Temporal: its development server on file SQLite (not its production set-up), and a worker."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from bench.peers.rounds import answer_rounds, payload

QUEUE = "saga"
READY_S = 60.0


@activity.defn
async def step(name: str) -> bool:
    return bool(name)


@workflow.defn
class Saga:
    @workflow.run
    async def run(self, asked: dict[str, Any]) -> dict[str, bool]:
        await self._do(f"validate {asked['saga_id']}")
        votes = await asyncio.gather(*map(self._do, ("performance", "resource", "application")))
        await self._do("decide")
        return {"ok": all(votes) and await self._do("execute")}

    async def _do(self, name: str) -> bool:
        return await workflow.execute_activity(
            step, name, start_to_close_timeout=timedelta(seconds=30)
        )


async def connected(address: str) -> Client:
    async with asyncio.timeout(READY_S):
        while True:
            try:
                return await Client.connect(address)
            except RuntimeError:
                await asyncio.sleep(0.2)


async def drive(address: str) -> None:
    client = await connected(address)

    async def one() -> None:
        done = await client.execute_workflow(
            Saga.run, payload(), id=str(uuid.uuid4()), task_queue=QUEUE
        )
        assert done["ok"]

    async with Worker(
        client,
        task_queue=QUEUE,
        workflows=[Saga],
        activities=[step],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        await answer_rounds(one)


def main(port: str, folder: Path) -> None:
    server = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "temporal"), "server", "start-dev", "--headless",
            "--ip", "127.0.0.1", "--port", port, "--db-filename", str(folder / "temporal.db"),
            "--log-level", "error",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        asyncio.run(drive(f"127.0.0.1:{port}"))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

"""The saga in DBOS, on PostgreSQL: six durable steps, three of them votes in parallel."""

from __future__ import annotations

import asyncio
import sys
import uuid
from typing import Any

from dbos import DBOS, SetWorkflowID

from bench.peers.rounds import answer_rounds, payload


@DBOS.step()
async def validate(asked: dict[str, Any]) -> str:
    return str(asked["saga_id"])


@DBOS.step()
async def vote_performance(saga: str) -> bool:
    return bool(saga)


@DBOS.step()
async def vote_resource(saga: str) -> bool:
    return bool(saga)


@DBOS.step()
async def vote_application(saga: str) -> bool:
    return bool(saga)


@DBOS.step()
async def decide(votes: list[bool]) -> bool:
    return all(votes)


@DBOS.step()
async def execute(decided: bool) -> dict[str, bool]:  # noqa: FBT001
    return {"ok": decided}


@DBOS.workflow()
async def saga(asked: dict[str, Any]) -> dict[str, bool]:
    name = await validate(asked)
    votes = await asyncio.gather(
        vote_performance(name), vote_resource(name), vote_application(name)
    )
    return await execute(await decide(list(votes)))


async def one() -> None:
    with SetWorkflowID(str(uuid.uuid4())):
        done = await saga(payload())
    assert done["ok"]


async def main(url: str) -> None:
    DBOS(
        config={
            "name": "bench",
            "system_database_url": url,
            "log_level": "ERROR",
            "sys_db_pool_size": 32,
        }
    )
    DBOS.launch()
    try:
        await answer_rounds(one)
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

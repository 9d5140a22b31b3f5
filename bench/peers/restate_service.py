"""The saga as a Restate service, served by hypercorn."""

from __future__ import annotations

from typing import Any

import restate

saga = restate.Service("saga")


@saga.handler()
async def run(context: restate.Context, asked: dict[str, Any]) -> dict[str, bool]:
    await context.run_typed("validate", lambda: str(asked["saga_id"]))
    votes = [
        context.run_typed(f"vote_{voter}", lambda: True)
        for voter in ("performance", "resource", "application")
    ]
    await restate.gather(*votes)
    agreed = [await vote for vote in votes]
    decided = await context.run_typed("decide", lambda: all(agreed))
    return await context.run_typed("execute", lambda: {"ok": decided})


app = restate.app([saga])

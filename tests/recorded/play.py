"""Plays every end of a change on a real PostgreSQL and exports the log.

`python -m tests.recorded.play` is run by hand, once a release: what it writes is committed, and
every later version must fold it.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import tempfile
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from optiinfra.coordinator.runner import Runner
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.runtime.stores import now
from optiinfra.schemas.approval_rules import ApprovalRule, Decision
from optiinfra.schemas.change import ControlVerb
from optiinfra.schemas.errors import OptiInfraError
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import APPROVAL_EXPIRY_S, Recommendation, Risk
from optiinfra.schemas.rollout import GateVerdict, Step, StepKind
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.vote import VOTERS, AgentName, Verdict
from optiinfra.storage.embedded.postgres import PostgresServer
from optiinfra.storage.postgres.database import Database, open_database
from optiinfra.storage.postgres.export import Range, exported
from optiinfra.storage.postgres.migrate import upgrade
from tests.factories import gate_answer, recommendation, rollout, step_result, vote
from tests.payloads import PAYLOADS
from tests.saga_log import decision, put_off, woken

HERE = Path(__file__).parent
Asked = TypeVar("Asked")
RULES = Rules(
    name="golden",
    max_moving=99,
    movers_per_hour=99,
    approval_expiry_s={**APPROVAL_EXPIRY_S, Risk.HIGH: 0.3},
    approvals=(
        ApprovalRule(name="never-critical", decision=Decision.DENY, kinds=("spot_replacement",)),
        ApprovalRule(name="low", max_risk=Risk.LOW),
    ),
)


class Player:
    """Hears and answers for everybody."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.said: list[Event] = []
        self._runner = Runner(database, self, lambda: RULES)
        self._number = 0

    async def publish_many(self, events: Sequence[Event]) -> list[int | OptiInfraError]:
        self.said += events
        return list(range(1, len(events) + 1))

    async def hear(self, *facts: f.Fact) -> None:
        for fact in facts:
            self._number += 1
            event = Event(
                id=derived_id("golden", self._number), source="golden", tenant="acme",
                time=now(), fact=fact, correlation=f.change_of(fact),
            )  # fmt: skip
            assert await self._runner.handle([event]) == [None], fact

    async def open(self, one: Recommendation) -> Recommendation:
        await self.hear(f.RecommendationProposed(recommendation=one))
        return one

    async def agree(self, one: Recommendation, verdict: Verdict = Verdict.APPROVE) -> None:
        number = max(a.round for a in self._asked(one, c.VoteRequested))
        await self.hear(*(vote(one.id, agent, verdict, number) for agent in sorted(VOTERS)))

    async def begin(self, one: Recommendation) -> Step:
        """Proposed, voted on, approved, and the first stage in force."""
        await self.open(one)
        await self.agree(one)
        return await self.stage(one)

    async def stage(self, one: Recommendation) -> Step:
        asked = self._asked(one, c.ExecutionRequested)[-1]
        await self.hear(
            f.ExecutionStarted(
                change=one.id, step=asked.step, fence=asked.fence, executor=AgentName.COST
            ),
            f.ExecutionStaged(change=one.id, result=step_result(asked.step, asked.fence)),
        )
        return asked.step

    async def judge(self, one: Recommendation, verdict: GateVerdict = GateVerdict.PASS) -> None:
        look = self._asked(one, c.GateRequested)[-1]
        for who in look.assessors:
            answer = gate_answer(one.id, who, stage=look.stage, look=look.look, verdict=verdict)
            await self.hear(f.GateAnswered(answer=answer))

    async def undone(self, one: Recommendation, *, proved: bool) -> None:
        asked = self._asked(one, c.RollbackRequested)[-1]
        done = f.RollbackCompleted(
            change=one.id, fence=asked.fence, proved=proved, detail="read back"
        )
        await self.hear(done)

    async def control(self, one: Recommendation, verb: ControlVerb) -> None:
        wish = c.ControlRequested(change=one.id, verb=verb, by="person:ann", reason="drill")
        await self.hear(wish)

    async def fire(self, one: Recommendation, name: f.TimerName) -> None:
        """Waits for the database's clock to come to a timer."""
        async with self._database.connection() as connection:
            body = await connection.fetchval("SELECT body FROM sagas WHERE change_id = $1", one.id)
            timer = json.loads(body)["timers"][name.value]
            due = datetime.fromisoformat(timer["fire_at"])
            wait = due - await connection.fetchval("SELECT clock_timestamp()")
        await asyncio.sleep(max(0.0, wait.total_seconds()) + 0.05)
        await self.hear(f.TimerFired(change=one.id, name=name, key=timer["key"]))

    def fence(self, one: Recommendation) -> int:
        """The fence of the step that was asked for last."""
        return self._asked(one, c.ExecutionRequested)[-1].fence

    async def begin_paused(self, one: Recommendation) -> None:
        """Approved while the stop switch is on."""
        await self.open(one)
        await self.agree(one)

    def _asked(self, one: Recommendation, kind: type[Asked]) -> list[Asked]:
        facts = [event.fact for event in self.said]
        return [fact for fact in facts if isinstance(fact, kind) and f.change_of(fact) == one.id]


def proposal(name: str, **changes: object) -> Recommendation:
    values = {"deployment": name, "rollout": rollout(0.5, 1.0)}
    return recommendation(name, **{**values, **changes})


async def story(p: Player) -> None:
    """Every terminal state, and every kind of fact that the log keeps."""
    tenant_facts = ("agent.registered", "policy.changed", "telemetry.gap", "quality.assessed")
    await p.hear(*(PAYLOADS[kind] for kind in tenant_facts))
    await completed(p)
    await undone(p)
    await never_begun(p)
    await rivals(p)
    await p.hear(
        f.SwitchTurned(tenant="acme", stopped=True, by="person:ann", reason="drill", at=now())
    )
    await p.begin_paused(proposal("stopped"))
    await p.hear(
        f.SwitchTurned(tenant="acme", stopped=False, by="person:ann", reason="over", at=now())
    )
    await p.hear(PAYLOADS["agent.lost"])


async def completed(p: Player) -> None:
    one = proposal("completed")
    await p.begin(one)
    await p.judge(one, GateVerdict.HOLD)
    await p.fire(one, f.TimerName.LOOK)
    await p.judge(one)
    await p.stage(one)
    await p.control(one, ControlVerb.PAUSE)
    await p.control(one, ControlVerb.PROMOTE)
    await p.control(one, ControlVerb.RESUME)
    await p.stage(one)
    await p.judge(one)
    recorded = PAYLOADS["outcome.recorded"]
    assert isinstance(recorded, f.OutcomeRecorded)
    outcome = recorded.outcome.model_copy(update={"change": one.id, "deployment": one.deployment})
    await p.hear(f.OutcomeRecorded(outcome=outcome))


async def undone(p: Player) -> None:
    worse = proposal("worse")
    await p.begin(worse)
    await p.judge(worse, GateVerdict.ROLL_BACK)
    await p.undone(worse, proved=True)
    regressed = proposal("regressed")
    await p.begin(regressed)
    await p.hear(f.QualityRegressed(change=regressed.id, reason="answers are worse"))
    await p.undone(regressed, proved=False)
    broken = proposal("broken")
    await p.open(broken)
    await p.agree(broken)
    step = Step(kind=StepKind.APPLY, stage=0, share=0.5)
    await p.hear(
        f.ExecutionFailed(change=broken.id, step=step, fence=p.fence(broken), reason="no capacity")
    )
    await p.undone(broken, proved=True)


async def never_begun(p: Player) -> None:
    vetoed, asked = proposal("vetoed"), proposal("asked", risk=Risk.MEDIUM)
    expired, cancelled = proposal("expired", risk=Risk.HIGH), proposal("cancelled", risk=Risk.HIGH)
    await p.open(vetoed)
    await p.agree(vetoed, Verdict.REJECT)
    for one in (cancelled, asked, expired):
        await p.open(one)
        await p.agree(one)
        if one is cancelled:
            await p.control(one, ControlVerb.ABORT)
    await p.hear(put_off(asked, 3_600, at=now()), woken(asked, at=now()))
    await p.hear(decision(asked, granted=False, at=now()))
    await p.fire(expired, f.TimerName.APPROVAL_EXPIRY)
    granted = proposal("granted", risk=Risk.MEDIUM)
    await p.open(granted)
    await p.agree(granted)
    await p.hear(decision(granted, at=now()))


async def rivals(p: Player) -> None:
    money = proposal("rivals", risk=Risk.MEDIUM)
    await p.open(money)
    await p.open(proposal("same", deployment="rivals", spec=money.spec, risk=Risk.MEDIUM))
    better = proposal("better", deployment="rivals", proposer=AgentName.APPLICATION)
    await p.open(better)
    await p.open(proposal("worse-one", deployment="rivals", risk=Risk.HIGH))
    await p.agree(better, Verdict.ABSTAIN)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        server = PostgresServer(Path(folder) / "postgres", durable=False)
        url = server.start()
        try:
            await upgrade(url)
            async with open_database(url) as database:
                await story(Player(database))
                lines = [line async for line in exported(database, Range("acme"))]
                async with database.connection() as connection:
                    rows = await connection.fetch("SELECT change_id, body FROM sagas ORDER BY 1")
        finally:
            server.stop()
    name = f"golden_{version('optiinfra')}"
    packed = gzip.compress("".join(lines).encode(), mtime=0)
    (HERE / f"{name}.jsonl.gz").write_bytes(packed)
    states = {row["change_id"]: json.loads(row["body"]) for row in rows}
    ends = gzip.compress(json.dumps(states, sort_keys=True).encode(), mtime=0)
    (HERE / f"{name}.states.json.gz").write_bytes(ends)


if __name__ == "__main__":
    asyncio.run(main())

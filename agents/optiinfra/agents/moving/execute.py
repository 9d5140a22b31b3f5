"""Answers execution and rollback commands: at most once a step, converging on what is read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from optiinfra.agents.base.agent import Say
from optiinfra.agents.moving.job import Hands, Job, OutOfDate, StepFailed
from optiinfra.agents.moving.move import Captured, Moves
from optiinfra.agents.moving.stages import Staged, apply, finish
from optiinfra.agents.moving.undo import undo
from optiinfra.events.commands import ExecutionRequested, RollbackRequested
from optiinfra.events.facts import (
    ExecutionFailed,
    ExecutionStaged,
    ExecutionStarted,
    Fact,
    RollbackCompleted,
)
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.errors import Conflict, Rejected
from optiinfra.schemas.execution import Intent
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.rollout import Step, StepKind, StepResult
from optiinfra.schemas.telemetry import Known

_UNDO = Step(kind=StepKind.ROLLBACK, stage=0, share=0.0)
_log = structlog.get_logger()


class Executor:
    """One agent's hands; it acts only on deployments that were switched to acting."""

    def __init__(
        self, deployments: Mapping[tuple[str, str], Deployment], hands: Hands, moves: Moves
    ) -> None:
        self._deployments = deployments
        self._hands = hands
        self._moves = moves

    async def execute(
        self, command: ExecutionRequested, budget_s: float, say: Say
    ) -> Sequence[Fact]:
        """The result of a step. `budget_s` is the time until its deadline, s.

        Empty when the command is for another executor or out of date. Raises `Unavailable` when a
        port cannot be reached.
        """
        if command.executor is not self._moves.executor:
            return []
        refusal = self._refusal(command.recommendation)
        if refusal is not None:
            return [_failed(command, refusal)]
        stop_at = self._hands.monotonic() + budget_s
        try:
            captured = await self._captured(command.recommendation)
            intent = await self._begin(command, captured)
            if intent.result is not None:
                return [_repeated(command, intent.result)]
            if not intent.captured:
                raise StepFailed("the change was rolled back before this step")
            await say(
                ExecutionStarted(
                    change=command.change,
                    step=command.step,
                    fence=command.fence,
                    executor=self._moves.executor,
                )
            )
            kept = Captured.model_validate(intent.captured)
            job = self._job(command, command.step, stop_at, kept)
            done = await (finish(job) if command.step.kind is StepKind.FINISH else apply(job))
            return [await self._staged(job, done)]
        except OutOfDate as error:
            _log.info("execution.out_of_date", change=command.change, reason=str(error))
            return []
        except (StepFailed, Rejected) as error:
            _log.warning("execution.failed", change=command.change, reason=str(error))
            return [_failed(command, str(error))]

    async def roll_back(self, command: RollbackRequested, budget_s: float) -> Sequence[Fact]:
        """Undoes all steps; also on a deployment that has been switched to observing since."""
        if command.executor is not self._moves.executor:
            return []
        stop_at = self._hands.monotonic() + budget_s
        found = await self._hands.intents.captured(command.change) or {}
        try:
            intent = await self._hands.intents.begin(command.change, _UNDO, command.fence, found)
        except Conflict as error:
            _log.info("rollback.out_of_date", change=command.change, reason=str(error))
            return []
        if intent.result is not None:
            return [_undone(command, True, str(intent.result["detail"]))]
        if not intent.captured:
            return [_undone(command, True, "no step had begun, so nothing was changed")]
        job = self._job(command, _UNDO, stop_at, Captured.model_validate(intent.captured))
        try:
            proved, detail = await undo(job)
        except OutOfDate as error:
            _log.info("rollback.out_of_date", change=command.change, reason=str(error))
            return []
        if proved:
            await self._hands.intents.finish(command.change, _UNDO, {"detail": detail})
        return [_undone(command, proved, detail)]

    def _refusal(self, recommendation: Recommendation) -> str | None:
        deployment = self._deployments.get((recommendation.tenant, recommendation.deployment))
        if deployment is None:
            return f"deployment {recommendation.deployment} is not configured here"
        if not deployment.acting:
            return "observe-only: acting is switched off for this deployment"
        return self._moves.refusal(recommendation)

    async def _captured(self, recommendation: Recommendation) -> dict[str, object]:
        """The target as it is, unless a step of the change has captured it before.

        Raises `Rejected` when its successors cannot be launched as the change wants them.
        """
        kept = await self._hands.intents.captured(recommendation.id)
        if kept:
            return kept
        tenant, deployment = recommendation.tenant, recommendation.deployment
        fleet = await self._hands.fleet(tenant, deployment)
        status = await self._hands.traffic.status(tenant, deployment)
        replicas = tuple(fleet[name] for name in sorted(fleet))
        routed = {backend.replica for backend in status.table.backends}
        return Captured(
            executor=self._moves.executor,
            recommendation=recommendation,
            table=status.table,
            replicas=replicas,
            spend=await self._hands.pricing.spend(replicas),
            engines=dict(
                await self._moves.engines(
                    recommendation, [one for one in replicas if one.id in routed]
                )
            ),
            at=self._hands.clock(),
        ).model_dump(mode="json")

    async def _begin(self, command: ExecutionRequested, captured: dict[str, object]) -> Intent:
        try:
            return await self._hands.intents.begin(
                command.change, command.step, command.fence, captured
            )
        except Conflict as error:
            raise OutOfDate(str(error)) from error

    def _job(
        self,
        command: ExecutionRequested | RollbackRequested,
        step: Step,
        stop_at: float,
        captured: Captured,
    ) -> Job:
        return Job(
            hands=self._hands,
            recommendation=command.recommendation,
            move=self._moves.move(captured),
            step=step,
            fence=command.fence,
            stop_at=stop_at,
            captured=captured,
        )

    async def _staged(self, job: Job, done: Staged) -> ExecutionStaged:
        """What was read back; of a finish that was held up, its stage."""
        fleet = await job.fleet()
        spend = await self._hands.pricing.spend(list(fleet.values()))
        step, stage = job.step, {"kind": StepKind.APPLY, "attempt": 1}
        result = StepResult(
            step=step.model_copy(update=stage) if done.held else step,
            fence=job.fence,
            arms=done.arms,
            applied=done.applied,
            usd_per_hour=spend.value if isinstance(spend, Known) else None,
            detail=done.detail,
            at=self._hands.clock(),
        )
        await job.require_fence()
        await self._hands.intents.finish(job.change, job.step, result.model_dump(mode="json"))
        return ExecutionStaged(change=job.change, result=result)


def _repeated(command: ExecutionRequested, result: dict[str, object]) -> ExecutionStaged:
    """The result that stands, under the fence of the command that asks again."""
    stood = StepResult.model_validate(result)
    fresh = {"applied": False, "fence": command.fence}
    return ExecutionStaged(change=command.change, result=stood.model_copy(update=fresh))


def _failed(command: ExecutionRequested, reason: str) -> ExecutionFailed:
    return ExecutionFailed(
        change=command.change, step=command.step, fence=command.fence, reason=reason
    )


def _undone(command: RollbackRequested, proved: bool, detail: str) -> RollbackCompleted:  # noqa: FBT001
    return RollbackCompleted(
        change=command.change, fence=command.fence, proved=proved, detail=detail
    )

"""Looks at the world: puts golden prompts to replicas and reads stored answers back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from optiinfra.agents.application.golden import Ask, GoldenItem, GoldenRunner, GoldenSet, Reply
from optiinfra.agents.application.policy import ApplicationPolicy, Baseline
from optiinfra.agents.application.records import (
    BASELINE,
    GATE,
    QUALITY_BASELINE,
    TWIN,
    assess_golden,
    baseline_of,
    golden_samples,
    stored_baseline,
)
from optiinfra.agents.application.sequential import Arm
from optiinfra.agents.base.agent import Clock
from optiinfra.agents.base.readings import Telemetry
from optiinfra.schemas.answers import ANSWER_SCORE, LIVE, SOURCE
from optiinfra.schemas.deployment import Deployment, Replica, ReplicaState
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.telemetry import Known, Reading, Sample, Unknown, UnknownReason

_ROUNDS: tuple[tuple[Arm, int, Mapping[str, str]], ...] = (
    (Arm.BASELINE, 0, {}),
    (Arm.CANARY, 0, {}),
    (Arm.BASELINE, 1, {TWIN: "2"}),
)
"""Who is asked in one look, beginning with which replica, and what the rows are labelled with.

The second answers come last: where time is short, the comparison itself goes first.
"""


class ReplicaSource(Protocol):
    """Where replicas and their URLs are known; an actuator is one."""

    async def replicas(self, tenant: str, deployment: str) -> Sequence[Replica]:
        """All replicas that exist. Raises `Unavailable` when nobody can say."""
        ...


class Rollouts(Protocol):
    """Where it is known what is being carried out."""

    async def are_under_way(self, tenant: str, deployment: str) -> bool:
        """Whether a change is being carried out or undone. Raises `Unavailable`."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """One replica to put golden prompts to, and as what."""

    replica: str
    url: str | None
    arm: str


@dataclass(frozen=True, slots=True)
class GoldenLook:
    """The rows of one golden run, all of one time, and whom it could not reach."""

    at: datetime
    rows: tuple[Sample, ...]
    unreached: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BaselineRun:
    """A baseline, or why there is none, with the rows behind it."""

    at: datetime
    rows: tuple[Sample, ...]
    baseline: Baseline | None
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Senses:
    """The ports through which the agent sees."""

    replicas: ReplicaSource
    telemetry: Telemetry
    golden: GoldenSet
    runner: GoldenRunner
    rollouts: Rollouts
    clock: Clock
    policy: ApplicationPolicy

    async def stored(
        self, deployment: Deployment, metric: str, since: datetime, replicas: Sequence[str] = ()
    ) -> Sequence[Sample]:
        """Rows of `metric` from `since` to now, of `replicas` or of all."""
        return await self.telemetry.window(
            deployment.tenant,
            deployment.id,
            metric,
            since=since,
            until=self.clock(),
            replicas=list(replicas) or None,
        )

    async def arms(self, deployment: Deployment, arms: Mapping[str, Sequence[str]]) -> list[Asked]:
        """The replicas of `arms` (by arm) with the URLs that they have now."""
        known = await self.replicas.replicas(deployment.tenant, deployment.id)
        urls = {replica.id: replica.url for replica in known}
        return [Asked(name, urls.get(name), arm) for arm, own in arms.items() for name in own]

    async def golden_look(
        self,
        deployment: Deployment,
        asked: Sequence[Asked],
        items: Sequence[GoldenItem],
        labels: Mapping[str, str],
        *,
        limit_s: float,
    ) -> GoldenLook:
        """Puts every item to both arms, in turn to an arm's replicas, and all at once.

        The baseline gets each a second time, from its next replica where it has several: what two
        answers of equals differ by is what a canary's may (A/A/B). A replica counts as unreached
        when it has no URL or when none of its prompts came back.
        """
        asks = [
            (Ask(item, to.replica, to.url), {"arm": to.arm, **named})
            for arm, turn, named in _ROUNDS
            for item, to in _in_turn(items, [one for one in asked if one.arm == arm.name], turn)
            if to.url is not None
        ]
        replies = await self.runner.run([ask for ask, _ in asks], deployment.model, limit_s=limit_s)
        at = self.clock()
        rows = [
            row
            for reply, (_, named) in zip(replies, asks, strict=True)
            for row in golden_samples(reply, at, {**labels, **named})
        ]
        return GoldenLook(at, tuple(rows), _unreached(asked, replies))

    async def are_equals(self, deployment: Deployment) -> bool:
        """Whether all replicas that serve are of one kind: while a change is under way, a canary
        serves beside them, and its answers would become the measure of its like."""
        return not await self.rollouts.are_under_way(deployment.tenant, deployment.id)

    async def baseline_run(self, deployment: Deployment) -> BaselineRun:
        """Two answers to each of a few golden prompts, in turn from the replicas that serve.

        Two answers of equals show how much answers differ without any change (an A/A run).
        Replicas that a gate has lately asked as a canary are no equals yet and are left out.
        """
        try:
            known = await self.replicas.replicas(deployment.tenant, deployment.id)
        except Unavailable as error:
            return BaselineRun(self.clock(), (), None, str(error))
        trial = await self._on_trial(deployment)
        serving = [one for one in known if one.state is ReplicaState.SERVING and one.url]
        serving = [one for one in serving if one.id not in trial]
        if not serving:
            return BaselineRun(self.clock(), (), None, "no replica serves that is not on trial")
        turn = int(self.clock().timestamp() // self.policy.baseline_every_s)
        items = self.golden.choose(f"{BASELINE}:{turn}", {}, self.policy.baseline_prompts)
        asks = [
            Ask(item, to.id, to.url or "")
            for at, item in enumerate(items)
            for to in (serving[at % len(serving)], serving[(at + 1) % len(serving)])
        ]
        replies = await self.runner.run(
            asks, deployment.model, limit_s=self.policy.baseline_limit_s
        )
        return _baseline_run(replies, self.clock(), turn)

    async def _on_trial(self, deployment: Deployment) -> frozenset[str | None]:
        since = self.clock() - timedelta(seconds=self.policy.baseline_every_s)
        rows = await self.stored(deployment, ANSWER_SCORE, since)
        return frozenset(
            row.replica
            for row in rows
            if row.labels.get("purpose") == GATE and row.labels.get("arm") == Arm.CANARY.name
        )

    async def vote_baseline(self, deployment: Deployment) -> tuple[Baseline | None, str]:
        """The latest baseline that is fresh, or None with the reason."""
        max_age_s = self.policy.baseline_max_age_s
        since = self.clock() - timedelta(seconds=max_age_s)
        rows = await self.stored(deployment, QUALITY_BASELINE, since)
        fresh = [found for row in rows if (found := stored_baseline(row)) is not None]
        if fresh:
            return max(fresh, key=lambda one: one.at), ""
        last = rows[-1].reading if rows else None
        if isinstance(last, Unknown):
            return None, last.detail
        return None, f"none of this scorer's version in the last {max_age_s:g} s"

    async def scored_per_s(self, deployment: Deployment) -> Reading:
        """Live sessions per second that could be scored, over the traffic window."""
        window_s = self.policy.traffic_window_s
        since = self.clock() - timedelta(seconds=window_s)
        rows = await self.stored(deployment, ANSWER_SCORE, since)
        units = {
            row.labels.get("unit")
            for row in rows
            if row.labels.get(SOURCE) == LIVE and isinstance(row.reading, Known)
        }
        if not units:
            return Unknown(reason=UnknownReason.NO_TRAFFIC, detail="no live answer was scored")
        return Known(value=len(units) / window_s)


def _in_turn(
    items: Sequence[GoldenItem], asked: Sequence[Asked], first: int
) -> list[tuple[GoldenItem, Asked]]:
    """Each item with the replica that it goes to; none when there is no replica."""
    if not asked:
        return []
    return [(item, asked[at % len(asked)]) for at, item in enumerate(items, first)]


def _unreached(asked: Sequence[Asked], replies: Sequence[Reply]) -> dict[str, str]:
    found = {one.replica: "it has no URL" for one in asked if one.url is None}
    for replica in dict.fromkeys(reply.ask.replica for reply in replies):
        own = [reply.unreached for reply in replies if reply.ask.replica == replica]
        reasons = [reason for reason in own if reason is not None]
        if len(reasons) == len(own):
            found[replica] = reasons[0]
    return found


def _baseline_run(replies: Sequence[Reply], at: datetime, turn: int) -> BaselineRun:
    labels = {"purpose": BASELINE, "turn": str(turn)}
    rows = [row for reply in replies for row in golden_samples(reply, at, labels)]
    twins = zip(replies[::2], replies[1::2], strict=True)
    scores = [(assess_golden(one).score, assess_golden(two).score) for one, two in twins]
    pairs = [
        (one.value, two.value, one.scorer)
        for one, two in scores
        if one.value is not None and two.value is not None and one.scorer == two.scorer
    ]
    if not pairs:
        why = next((reply.unreached for reply in replies if reply.unreached), "no answer scored")
        return BaselineRun(at, tuple(rows), None, why)
    scorers = [scorer for *_, scorer in pairs]
    main = max(sorted(set(scorers)), key=scorers.count)
    baseline = baseline_of([(one, two) for one, two, _ in pairs], main, at)
    return BaselineRun(at, tuple(rows), baseline)

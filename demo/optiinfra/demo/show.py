"""Runs the story: follows the event log, tells it, and does what a person or a cloud would do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optiinfra.agents.actuators.traffic import TrafficCounters
from optiinfra.demo.api import PublicApi
from optiinfra.demo.children import Child, Line
from optiinfra.demo.narration import Narrator, Spoken, tell_cloud
from optiinfra.demo.parts import Parts
from optiinfra.demo.scenario import CALM, FAST, STAGE_OF, WRONG_ANSWERS, Play
from optiinfra.demo.story import TOLD, Action, AskPerson, Story
from optiinfra.demo.summary import Summary, change_of_play, summarise
from optiinfra.demo.view import View
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.errors import Unavailable
from optiinfra.twin.defects import Defect

EVENTS_FILE = "events.jsonl"
COUNTERS_FILE = "counters.json"
_POLL_S = 0.4
_TRIES = 25
_STOP_USERS_S = 15.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The summary, the change of each play that had one, and what did not go as told."""

    summary: Summary
    changes: dict[Play, str]
    complaints: tuple[str, ...]


class Show:
    """One run, in a home of its own."""

    def __init__(
        self, plays: Sequence[Play], view: View, *, home: Path, fast: bool, seed: int
    ) -> None:
        self._plays = tuple(plays)
        self._view = view
        self._home = home
        self._pace = FAST if fast else CALM
        self._seed = seed
        self._story = Story(plays)
        self._narrator = Narrator()
        self._position = 0
        self._counted: dict[str, Any] = {}
        self._said_last = ""

    async def play(self, *, approve_all: bool) -> Verdict:
        """From nothing to the verdict. Raises `Unavailable` when a part does not start or ends."""
        async with AsyncExitStack() as stack:
            parts = await stack.enter_async_context(
                Parts(self._plays, self._pace, home=self._home, seed=self._seed)
            )
            self._say("a simulated cloud starts, with machines that run emulated engines")
            cloud, told = await parts.cloud(self._hear_cloud)
            await self._spoil(cloud)
            self._say("OptiInfra starts: optiinfra up --config fleet.yaml")
            session = await parts.optiinfra(told)
            self._view.link(f"watch it in a browser, signed in: {session.sign_in_url}")
            api = await stack.enter_async_context(PublicApi(session))
            users = await parts.users(session, self._hear_users)
            self._say("users ask, agents look", "good")
            async with asyncio.TaskGroup() as group:
                watching = [group.create_task(child.must_live()) for child in parts.children]
                await self._follow(api, cloud, approve_all=approve_all)
                for task in watching:
                    task.cancel()
            await users.stop(_STOP_USERS_S)
            return await self._verdict(api)

    async def _spoil(self, cloud: Child) -> None:
        """New machines of play (b) answer worse; nobody but the cloud knows."""
        if Play.REGRESSION in self._plays:
            defect = Defect(wrong_answer_rate=WRONG_ANSWERS).model_dump(mode="json")
            deployment = STAGE_OF[Play.REGRESSION].deployment
            await cloud.tell(do="defect", deployment=deployment, defect=defect)

    async def _follow(self, api: PublicApi, cloud: Child, *, approve_all: bool) -> None:
        """Takes the log in until every play is over, and a little further."""
        loop = asyncio.get_running_loop()
        latest = loop.time() + self._pace.patience_s
        while not self._story.is_over:
            for action in await self._news(api):
                await self._act(action, api, cloud, approve_all=approve_all)
            if loop.time() > latest and approve_all:
                raise Unavailable(f"the story is not over after {self._pace.patience_s:.0f} s")
            await asyncio.sleep(_POLL_S)
        self._say("all plays are over; the agents go on working while the last requests end")
        ends = loop.time() + self._pace.epilogue_s
        while loop.time() < ends:
            await self._news(api)
            await asyncio.sleep(_POLL_S)

    async def _news(self, api: PublicApi) -> list[Action]:
        """Tells what is new in the log; what is to be done about it.

        An API that does not answer is asked again for a while.
        """
        actions: list[Action] = []
        for tries_left in reversed(range(_TRIES)):
            try:
                async for event in api.events(self._position):
                    self._position = event.position
                    actions += self._story.take(event)
                    for spoken in self._narrator.tell(event):
                        self._view.say(spoken)
                break
            except Unavailable:
                if not tries_left:
                    raise
                await asyncio.sleep(_POLL_S)
        self._view.plays(self._story.states)
        return actions

    async def _act(
        self, action: Action, api: PublicApi, cloud: Child, *, approve_all: bool
    ) -> None:
        if isinstance(action, AskPerson):
            await self._decide(action, api, approve_all=approve_all)
            return
        self._say("spot runs out of capacity, and the cloud takes a spot machine back", "bad")
        await cloud.tell(do="spot_capacity", available=False)
        await cloud.tell(do="reclaim", deployment=action.deployment, notice_s=self._pace.notice_s)

    async def _decide(self, action: AskPerson, api: PublicApi, *, approve_all: bool) -> None:
        proposal = action.proposal
        approve = True if approve_all else await self._asked(proposal.id, proposal.title, api)
        if approve is None:
            self._say("decided in the browser")
            return
        reason = "--yes was given" if approve_all else "decided at the terminal"
        await api.decide(proposal.id, action.version_hash, approve=approve, reason=reason)

    async def _asked(self, change: str, title: str, api: PublicApi) -> bool | None:
        """The answer at the terminal; None when it was given elsewhere meanwhile."""
        asking = asyncio.ensure_future(self._view.ask(f"{title}: approve?"))
        elsewhere = asyncio.ensure_future(self._decided(change, api))
        waiting: set[asyncio.Future[Any]] = {asking, elsewhere}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else elsewhere.result()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)

    async def _decided(self, change: str, api: PublicApi) -> None:
        """Until nobody is asked about a change any more."""
        while True:
            with suppress(Unavailable):
                if not await api.is_awaited(change):
                    return
            await asyncio.sleep(_POLL_S)

    async def _verdict(self, api: PublicApi) -> Verdict:
        await self._news(api)
        counters, verified = await api.counters(), await api.verify()
        log = self._story.log
        self._keep(counters)
        summary = summarise(log, counters, plays=self._plays, audit_ok=verified.ok, seed=self._seed)
        complaints = (*complaints_about(summary), *self._miscounted(counters))
        found = {play: change_of_play(log, play) for play in self._plays}
        changes = {play: change for play, change in found.items() if change is not None}
        return Verdict(summary, changes, complaints)

    def _keep(self, counters: TrafficCounters) -> None:
        """What the summary was computed from, beside the stores of a home that is kept."""
        lines = (event.model_dump_json() + "\n" for event in self._story.log)
        (self._home / EVENTS_FILE).write_text("".join(lines), encoding="utf-8")
        (self._home / COUNTERS_FILE).write_text(counters.model_dump_json(), encoding="utf-8")

    def _miscounted(self, counters: TrafficCounters) -> list[str]:
        """Where the users' own count differs from the gateway's, and which requests were lost."""
        totals = counters.totals
        seen = {name: self._counted.get(name) for name in ("served", "failed", "truncated")}
        told = {"served": totals.served, "failed": totals.failed, "truncated": totals.truncated}
        found = [str(lost) for lost in self._counted.get("lost", [])]
        if seen != told:
            found.append(f"users counted {seen}, the gateway {told}")
        return found

    def _hear_cloud(self, line: Line) -> None:
        spoken = tell_cloud(line)
        if spoken is not None and spoken.text != self._said_last:
            self._said_last = spoken.text
            self._view.say(spoken)

    def _hear_users(self, line: Line) -> None:
        self._counted = line
        self._view.load(line)

    def _say(self, text: str, tone: str = "plain") -> None:
        self._view.say(Spoken("demo", text, tone))


def complaints_about(summary: Summary) -> list[str]:
    """What did not go as told; a person's refusal is nobody's fault."""
    fine = {None, ChangeState.REJECTED}
    found = [
        f"play {play} ended {state}, not {TOLD[play]}"
        for play, state in summary.plays.items()
        if state is not TOLD[play] and state not in fine
    ]
    if summary.requests.failed or summary.requests.truncated:
        found.append(f"requests were lost: {summary.requests}")
    if not summary.audit_ok:
        found.append("the event log's hash chains do not hold")
    return found

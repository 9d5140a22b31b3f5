"""Plays the loop on a real engine, and counts what its clients saw."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from optiinfra.demo.api import LoggedEvent, PublicApi
from optiinfra.demo.children import Child, ChildSpec, child_environment
from optiinfra.demo.narration import Narrator
from optiinfra.demo.vllm.lab import Lab
from optiinfra.demo.vllm.measure import Users, mcnemar, right_answers, saturating, throughput
from optiinfra.demo.vllm.plan import ENVIRONMENT, GRID, MODEL, models_in, questions, written
from optiinfra.demo.vllm.summary import (
    Accuracy,
    Counts,
    Grid,
    Measured,
    Summary,
    Tuned,
    VariantEnd,
)
from optiinfra.events.facts import (
    TERMINAL_FACTS,
    ApprovalRequested,
    GateAnswered,
    RecommendationProposed,
    change_of,
)
from optiinfra.runtime.session import Session, read_session
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.recommendation import BatchTuning, Recommendation
from optiinfra.schemas.tuning import KnobValue
from optiinfra.schemas.vote import AgentName
from optiinfra.serving.curves import faster, words

_READY_S, _STUDY_S, _CHANGE_S, _POLL_S = 600.0, 3_600.0, 1_800.0, 0.5
_AGAIN = 3
"""So often the grid's best and ours are started to be measured in turns."""
_MANY, _SOME, _THINK_S = 48, 4, 2.0
"""Users: many more than a batch of two can serve; and some, who think between their questions,
while a rollout goes on. During a study there are none: this machine is the staging machine, too."""

Say = Callable[[str], None]
Ask = Callable[[str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Wish:
    """What to play: the grid takes long, variants are repeated `runs` times."""

    executable: Path
    home: Path
    grid: bool = True
    runs: int = 1


class Story:
    """One run in a home of its own; `ask` is a person's word on a proposal."""

    def __init__(self, wish: Wish, say: Say, ask: Ask) -> None:
        self._wish, self._say, self._ask = wish, say, ask
        self._narrator = Narrator()
        self._position = 0
        self._log: list[LoggedEvent] = []
        self._approved: set[str] = set()

    async def play(self) -> Summary:
        """Raises `Unavailable` when a part does not start, ends by itself, or takes too long."""
        async with AsyncExitStack() as stack:
            models = models_in(self._wish.home)
            config = written(self._wish.home, self._wish.executable, models)
            up = self._up(config)
            stack.push_async_callback(up.stop, 60.0)
            await up.start()
            session = await self._ready(up)
            url = (session.gateway_url or "").rstrip("/")
            api = await stack.enter_async_context(PublicApi(session))
            lab = Lab(self._wish.home, config, self._wish.executable, models)
            return await self._loop(session, url, api, lab)

    async def _loop(self, session: Session, url: str, api: PublicApi, lab: Lab) -> Summary:
        asked = questions()
        replay = saturating(asked)
        self._say("a server with max_num_seqs 2: how fast, and how often is it right?")
        before = await throughput(url, replay)
        right = await right_answers(url, asked)
        users = Users(url, asked)
        try:
            self._say(f"{_MANY} users ask; the agents look for what binds the server")
            users.be(_MANY)
            tuned = await self._tuned(api, users)
            users.be(_SOME, _THINK_S)
            end = await self._ended(api, tuned.id)
            self._say(f"the tuning is {end}")
        finally:
            await users.leave()
        after = await throughput(url, replay)
        still_right = await right_answers(url, asked)
        grid = await self._grid(lab, tuned.curve[1].knobs) if self._wish.grid else None
        variants = await self._variants(session, url, api, lab, tuned.curve[1].knobs)
        counters, verified = (await api.counters()).totals, await api.verify()
        ends = users.ends
        return Summary(
            tuned=Tuned(
                state=end, knobs=tuned.curve[1].knobs, trials=len(tuned.curve),
                staged_gain=faster(*tuned.curve[:2]),
            ),
            before=Measured.of(before),
            after=Measured.of(after),
            grid=grid,
            requests=Counts(
                served=ends.served + before.served + after.served,
                failed=ends.failed + before.failed + after.failed,
                truncated=ends.truncated,
                gateway={
                    "served": counters.served, "failed": counters.failed,
                    "truncated": counters.truncated,
                },
            ),
            accuracy=Accuracy(
                before=sum(right) / len(right), after=sum(still_right) / len(still_right),
                asked=len(right), p_value=mcnemar(right, still_right),
            ),
            variants=variants,
            audit_ok=verified.ok,
        )  # fmt: skip

    async def _variants(
        self, session: Session, url: str, api: PublicApi, lab: Lab, knobs: Mapping[str, KnobValue]
    ) -> dict[str, tuple[VariantEnd, ...]]:
        """Weights that answer much worse, a little worse and as well: what becomes of each."""
        found: dict[str, tuple[VariantEnd, ...]] = {}
        users = Users(url, questions())
        standing = "served"
        for name in ("broken", "worse", "equal"):
            ends = []
            for number in range(1 if name == "broken" else self._wish.runs):
                self._say(f"proposed: weights that are {name} (run {number + 1})")
                weights = name if name != standing else "served"  # as good as those of `equal`
                change = await lab.proposed(standing, weights, knobs, session.nats_url or "")
                users.be(_SOME, _THINK_S)
                state = await self._ended(api, change)
                await users.leave()
                standing = weights if state == ChangeState.COMPLETED else standing
                ends.append(VariantEnd.of(state, self._answers(change)))
                self._say(f"{name}: {ends[-1].model_dump()}")
            found[name] = tuple(ends)
        return found

    async def _tuned(self, api: PublicApi, users: Users) -> Recommendation:
        """The proposal that a study ends with; users are away while it tries things out."""

        told, loop = 0, asyncio.get_running_loop()
        latest = loop.time() + _STUDY_S
        while (found := self._proposed()) is None:
            if loop.time() > latest:
                raise Unavailable(f"nothing was proposed within {_STUDY_S:.0f} s")
            lines = self._log_lines()
            for line in lines[told:]:
                self._tell_of_study(line, users)
            told = len(lines)
            await self._news(api)
            await asyncio.sleep(_POLL_S)
        assert isinstance(found.spec, BatchTuning)
        return found

    def _proposed(self) -> Recommendation | None:
        facts = [event.fact for event in self._log]
        made = [one.recommendation for one in facts if isinstance(one, RecommendationProposed)]
        return next((one for one in made if one.proposer is AgentName.PERFORMANCE), None)

    def _tell_of_study(self, line: dict[str, Any], users: Users) -> None:
        match line.get("event"):
            case "study.begun":
                self._say(f"bound by {line['cause']}; a study begins: {line['knobs']}")
                users.be(0)
            case "staging.tried":
                rate, why = line["tokens_per_s"], line["reason"] or line["outcome"]
                self._say(f"  staging: {line['knobs']}: {rate} tokens/s ({why})")
            case "study.ended":
                self._say(f"the study ends: {line['why']}")

    def _answers(self, change: str) -> list[GateAnswered]:
        return [
            event.fact
            for event in self._log
            if isinstance(event.fact, GateAnswered)
            and event.fact.answer.change == change
            and event.fact.answer.assessor is AgentName.APPLICATION
        ]

    async def _grid(self, lab: Lab, chosen: Mapping[str, KnobValue]) -> Grid:
        """Every configuration of the grid, and the chosen one, under one replay.

        The best of many single measurements is best by luck, too: it and the chosen one are
        started anew and serve the replay in turns, and only that counts.
        """
        ours, *rest = (chosen, *(one for one in GRID if one != chosen))
        rates = {words(knobs): await self._rate(lab, knobs) for knobs in (ours, *rest)}
        best = max((ours, *rest), key=lambda knobs: rates[words(knobs)])
        both = (ours, best) if best != ours else (ours,)
        again: dict[str, list[float]] = {words(knobs): [] for knobs in both}
        for _ in range(_AGAIN):
            for knobs, found in zip(both, await lab.in_turns(both), strict=True):
                again[words(knobs)] += found
                told = ", ".join(f"{rate:.0f}" for rate in found)
                self._say(f"  in turns: {words(knobs)}: {told} tokens/s")
        return Grid(
            size=len(GRID), best=words(best), walked=rates,
            best_tokens_per_s=median(again[words(best)]),
            ours_tokens_per_s=median(again[words(ours)]),
        )  # fmt: skip

    async def _rate(self, lab: Lab, knobs: Mapping[str, KnobValue]) -> float:
        """Tokens/s on a staging replica of its own; 0 for one that does not serve."""
        trial = await lab.tried(knobs)
        self._say(f"  grid: {words(knobs)}: {trial.throughput} tokens/s {trial.reason}")
        return trial.throughput or 0.0

    async def _ended(self, api: PublicApi, change: str) -> str:
        """The state in which a change ends; a person is asked when it is time."""
        loop = asyncio.get_running_loop()
        latest = loop.time() + _CHANGE_S
        while loop.time() < latest:
            await self._news(api)
            for event in self._log:
                await self._decide(event, api)
                if change_of(event.fact) == change and event.kind in TERMINAL_FACTS:
                    return TERMINAL_FACTS[event.kind].value
            await asyncio.sleep(_POLL_S)
        raise Unavailable(f"change {change} was not over within {_CHANGE_S:.0f} s")

    async def _decide(self, event: LoggedEvent, api: PublicApi) -> None:
        fact = event.fact
        if not isinstance(fact, ApprovalRequested) or fact.change in self._approved:
            return
        self._approved.add(fact.change)
        approve = await self._ask(f"change {fact.change[:8]}, risk {fact.risk}: approve?")
        await api.decide(
            fact.change, fact.version_hash, approve=approve, reason="the demo's person"
        )

    async def _news(self, api: PublicApi) -> None:
        """Takes in and tells what is new in the event log."""
        async for event in api.events(self._position):
            self._position = event.position
            self._log.append(event)
            for spoken in self._narrator.tell(event):
                self._say(f"{spoken.about}: {spoken.text}")

    def _up(self, config: Path) -> Child:
        env = child_environment(
            **ENVIRONMENT,
            OPTIINFRA_HOME=str(self._wish.home / "run"),
            OPTIINFRA_CONFIG=str(config),
            OPTIINFRA_PORTAL_PORT="0",
            OPTIINFRA_GATEWAY_PORT="0",
            OPTIINFRA_LOG_JSON="true",
        )
        self._up_log = self._wish.home / "up.log"
        return Child(
            ChildSpec("up", "optiinfra.runtime.cli", ["up"], self._up_log, lambda _line: None, env)
        )

    def _log_lines(self) -> list[dict[str, Any]]:
        """What `up` has logged so far."""
        lines = self._up_log.read_text("utf-8", errors="replace").splitlines()
        return [json.loads(one) for one in lines if one.startswith("{") and one.endswith("}")]

    async def _ready(self, up: Child) -> Session:
        """Once the server answers through the gateway."""
        self._say("optiinfra up, with a real vLLM server: it loads its model")
        alive = asyncio.ensure_future(up.must_live())
        ready = asyncio.ensure_future(self._answering())
        try:
            done, _ = await asyncio.wait(
                {alive, ready}, timeout=_READY_S, return_when=asyncio.FIRST_COMPLETED
            )
            if ready in done:
                return ready.result()
            if alive in done:
                await alive
            raise up.late("vLLM behind the gateway", _READY_S)
        finally:
            alive.cancel()
            ready.cancel()

    async def _answering(self) -> Session:
        while (session := read_session(self._wish.home / "run")) is None:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        url = f"{(session.gateway_url or '').rstrip('/')}/v1/completions"
        body = {"model": MODEL, "prompt": "Q:", "max_tokens": 1}
        async with httpx.AsyncClient(timeout=60.0, trust_env=False) as http:
            while True:
                try:
                    if (await http.post(url, json=body)).status_code == 200:
                        return session
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(_POLL_S)

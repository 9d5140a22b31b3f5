"""What the story does when something happens: asks a person, sends the reclaim, ends; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optiinfra.demo.api import LoggedEvent
from optiinfra.demo.scenario import STAGE_OF, Play
from optiinfra.demo.summary import change_of_play
from optiinfra.events.facts import (
    TERMINAL_FACTS,
    ApprovalRequested,
    OutcomeRecorded,
    RecommendationProposed,
    change_of,
)
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.ids import ChangeId
from optiinfra.schemas.recommendation import Recommendation

TOLD = {
    Play.MIGRATION: ChangeState.COMPLETED,
    Play.REGRESSION: ChangeState.ROLLED_BACK,
    Play.VETO: ChangeState.VETOED,
    Play.RECLAIM: ChangeState.COMPLETED,
}
"""How each play ends as told."""
_WITH_OUTCOME = frozenset({ChangeState.COMPLETED, ChangeState.ROLLED_BACK})


@dataclass(frozen=True, slots=True)
class AskPerson:
    """Somebody has to say yes or no to this version of a proposal."""

    proposal: Recommendation
    version_hash: str


@dataclass(frozen=True, slots=True)
class SendReclaim:
    """The cloud is to take a spot machine of this deployment back, with no spot left to buy."""

    deployment: str


Action = AskPerson | SendReclaim


class Story:
    """Follows the log; the same log gives the same actions."""

    def __init__(self, plays: Sequence[Play]) -> None:
        self.plays = tuple(plays)
        self.states: dict[Play, str] = dict.fromkeys(plays, "not yet begun")
        self._log: list[LoggedEvent] = []
        self._changes: dict[ChangeId, Play] = {}
        self._proposals: dict[ChangeId, Recommendation] = {}
        self._ends: dict[Play, ChangeState] = {}
        self._remembered: set[ChangeId] = set()
        self._reclaiming = False

    @property
    def log(self) -> Sequence[LoggedEvent]:
        """All events taken in, in their order."""
        return self._log

    @property
    def is_over(self) -> bool:
        """Whether every play has ended, and what changed something has its outcome on record."""
        return all(self._is_over(play) for play in self.plays)

    def take(self, event: LoggedEvent) -> list[Action]:
        """Takes the next event of the log in; what is to be done because of it."""
        self._log.append(event)
        fact = event.fact
        if isinstance(fact, RecommendationProposed):
            self._proposals[fact.recommendation.id] = fact.recommendation
            self._find()
        change = change_of(fact)
        play = self._changes.get(change or "")
        if change is None or play is None:
            return []
        self.states[play] = event.kind
        if isinstance(fact, OutcomeRecorded):
            self._remembered.add(change)
        if event.kind in TERMINAL_FACTS:
            self._ends[play] = TERMINAL_FACTS[event.kind]
        if play in self._ends:
            self.states[play] = self._ends[play].value
        if isinstance(fact, ApprovalRequested):
            return [AskPerson(self._proposals[change], fact.version_hash)]
        return self._reclaim()

    def _find(self) -> None:
        """Which change belongs to which play; further ones belong to none."""
        for play in self.plays:
            found = change_of_play(self._log, play)
            if found is not None:
                self._changes.setdefault(found, play)

    def _reclaim(self) -> list[Action]:
        migration = self._changes_of(Play.MIGRATION)
        due = (
            Play.RECLAIM in self.plays
            and not self._reclaiming
            and self._ends.get(Play.MIGRATION) is ChangeState.COMPLETED
            and migration in self._remembered
        )
        if not due:
            return []
        self._reclaiming = True
        return [SendReclaim(STAGE_OF[Play.RECLAIM].deployment)]

    def _is_over(self, play: Play) -> bool:
        end = self._ends.get(play)
        if play is Play.RECLAIM and end is None:
            migrated = self._ends.get(Play.MIGRATION)
            return migrated is not None and migrated is not ChangeState.COMPLETED
        if end in _WITH_OUTCOME:
            return self._changes_of(play) in self._remembered
        return end is not None

    def _changes_of(self, play: Play) -> ChangeId | None:
        return next((change for change, one in self._changes.items() if one is play), None)

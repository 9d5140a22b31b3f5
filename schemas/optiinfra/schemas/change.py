"""The lifecycle of a change."""

from __future__ import annotations

from enum import StrEnum


class ChangeState(StrEnum):
    PROPOSED = "proposed"
    DEFERRED = "deferred"
    VOTING = "voting"
    AWAITING_APPROVAL = "awaiting_approval"
    APPROVED = "approved"
    EXECUTING = "executing"
    ROLLING_BACK = "rolling_back"
    COMPLETED = "completed"
    ROLLED_BACK = "rolled_back"
    VETOED = "vetoed"
    REJECTED = "rejected"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL_STATES

    @property
    def holds_target(self) -> bool:
        """Whether the change has its target for itself (being decided or being executed)."""
        return self in TARGET_HOLDING_STATES


TERMINAL_STATES = frozenset(
    {
        ChangeState.COMPLETED,
        ChangeState.ROLLED_BACK,
        ChangeState.VETOED,
        ChangeState.REJECTED,
        ChangeState.EXPIRED,
        ChangeState.SUPERSEDED,
        ChangeState.CANCELLED,
        ChangeState.FAILED,
    }
)
TARGET_HOLDING_STATES = frozenset(
    {
        ChangeState.VOTING,
        ChangeState.AWAITING_APPROVAL,
        ChangeState.APPROVED,
        ChangeState.EXECUTING,
        ChangeState.ROLLING_BACK,
    }
)


class Phase(StrEnum):
    """Where an executing change stands within its stage."""

    APPLYING = "applying"
    SOAKING = "soaking"
    GATING = "gating"
    FINISHING = "finishing"


class ControlVerb(StrEnum):
    """What an operator may ask of a running change."""

    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    ABORT = "abort"
    ROLLBACK = "rollback"

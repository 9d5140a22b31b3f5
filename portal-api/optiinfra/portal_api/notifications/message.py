"""What is told of an event, in words; pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.events.subjects import row_of
from optiinfra.schemas.notification import Notice
from optiinfra.schemas.recommendation import Recommendation, Risk


@dataclass(frozen=True, slots=True)
class Message:
    """One notification; `id` is the event's, so that a receiver knows a repeat.

    Without a `notice` it is a test that somebody sends.
    """

    id: str
    notice: Notice | None
    tenant: str
    at: datetime
    title: str
    lines: tuple[str, ...] = ()
    change: str | None = None
    deployment: str | None = None
    risk: Risk | None = None
    version_hash: str | None = None
    link: str | None = None

    @property
    def text(self) -> str:
        """The whole of it as plain text."""
        return "\n".join((self.title, *self.lines, *((self.link,) if self.link else ())))


def notice_of(event: Event) -> Notice:
    """Raises `ValueError` for an event that nobody is told of."""
    return Notice(row_of(event.fact).prefix)


def message_of(event: Event, proposal: Recommendation | None, portal_url: str | None) -> Message:
    """What is told of an event about a change (its `proposal`) or about the tenant."""
    fact, notice = event.fact, notice_of(event)
    about = f"{proposal.deployment}: {proposal.title}" if proposal is not None else None
    title, *lines = _TELLERS[notice](fact)
    change = f.change_of(fact)
    return Message(
        id=event.id,
        notice=notice,
        tenant=event.tenant,
        at=event.time,
        title=f"{title}: {about}" if about else title,
        lines=tuple(line for line in (*lines, *_worth(proposal)) if line),
        change=change,
        deployment=proposal.deployment if proposal else getattr(fact, "deployment", None),
        risk=proposal.risk if proposal else None,
        version_hash=getattr(fact, "version_hash", None),
        link=f"{portal_url.rstrip('/')}/recommendations/{change}"
        if portal_url and change
        else None,
    )


def _worth(proposal: Recommendation | None) -> list[str]:
    """The saving as a range, where one was predicted."""
    saving = proposal.saving_usd_per_month if proposal is not None else None
    if saving is None:
        return []
    return [f"predicted saving: {saving.low:,.0f} to {saving.high:,.0f} $ a month"]


def _asked(fact: f.ApprovalRequested) -> tuple[str, ...]:
    people = f"{fact.needed} people must" if fact.needed > 1 else "a person must"
    until = fact.expires_at.strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"Approval needed ({fact.risk} risk)",
        f"{people} decide until {until}; version {fact.version_hash}",
        fact.reason,
    )


_TELLERS: dict[Notice, Callable[[Any], tuple[str, ...]]] = {
    Notice.APPROVAL_REQUESTED: _asked,
    Notice.COMPLETED: lambda _: ("Completed",),
    Notice.ROLLED_BACK: lambda x: ("Rolled back", x.reason),
    Notice.FAILED: lambda x: ("FAILED, a person is needed", x.reason),
    Notice.VETOED: lambda x: (f"Vetoed by {', '.join(x.by)}", *x.reasons),
    Notice.REJECTED: lambda x: (f"Rejected by {x.by}", x.reason),
    Notice.PAUSED: lambda x: (f"Paused by {x.by}", x.reason),
    Notice.QUALITY_REGRESSED: lambda x: ("Quality alarm, it is being undone", x.reason),
    Notice.TELEMETRY_GAP: lambda x: (f"Telemetry is missing on {x.deployment}", x.detail),
    Notice.AGENT_LOST: lambda x: (f"The {x.agent} agent is silent", f"instance {x.instance}"),
    Notice.SWITCH_TURNED: lambda x: (
        f"The stop switch was turned {'ON' if x.stopped else 'off'} by {x.by}",
        x.reason,
    ),
}

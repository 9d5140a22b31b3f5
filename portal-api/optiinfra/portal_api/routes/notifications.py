"""Whom this installation tells what, what it has told of late, and a test of a target."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import AwareDatetime, BaseModel, Field

from optiinfra.events.bus_roles import BusRole
from optiinfra.events.subjects import BY_PREFIX
from optiinfra.portal_api.auth import Auditor, Operator, Ports
from optiinfra.portal_api.notifications.declared import Declared
from optiinfra.portal_api.notifications.notifier import consumer_of
from optiinfra.portal_api.ports import ApiPorts
from optiinfra.schemas.errors import Denied, NotFound, Rejected, Unavailable
from optiinfra.schemas.notification import AnyTarget, Notice, NotificationRule, SlackTarget
from optiinfra.schemas.recommendation import Risk
from optiinfra.storage.postgres.access import Principal
from optiinfra.storage.postgres.audit import Attempt
from optiinfra.storage.postgres.queries import Row
from optiinfra.storage.postgres.told import Told

router = APIRouter(tags=["notifications"])
TargetName = Annotated[str, Path(min_length=1, max_length=63)]
LOOKED_AT, SHOWN = 200, 20
"""So many handled events are read, and so many of those that were sent are shown."""
NO_FILE = "no notifications file is declared where this API runs"
_BURIED_AS = BusRole.NOTIFIER.value
_NOTICE_OF = {BY_PREFIX[notice.value].type: notice for notice in Notice}


class ToldView(BaseModel):
    """One notice that its target has taken."""

    event_id: str
    notice: Notice
    at: AwareDatetime
    change: str | None
    title: str | None
    deployment: str | None


class TargetView(BaseModel):
    """Never where it is or with which secret."""

    name: str
    kind: str
    decides: bool = Field(description="approvals can be given there")
    notices: list[Notice] = Field(description="all that some rule may send to it")
    waiting: int | None = Field(description="events that it has not been told yet")
    retried: int | None = Field(description="events under way that were tried more than once")
    reason: str | None = Field(description="why `waiting` and `retried` are not known")
    told: list[ToldView] = Field(description="what it was told of late, by the rules of now")


class NotificationsView(BaseModel):
    """Empty with a `reason` where nothing is declared."""

    reason: str | None
    portal_url: str | None
    give_up_after_s: float | None
    buried_as: str = Field(description="the consumer's name that dead letters are listed under")
    rules: list[NotificationRule]
    targets: list[TargetView]


class SentView(BaseModel):
    """Whether the target has taken the test, or why it has not."""

    target: str
    sent: bool
    reason: str | None


@router.get("/notifications")
async def notifications(who: Auditor, ports: Ports) -> NotificationsView:
    """The targets and rules as declared, and how far each target is."""
    declared = _declared(who, ports)
    if declared is None:
        return NotificationsView(
            reason=NO_FILE, portal_url=None, give_up_after_s=None, buried_as=_BURIED_AS, rules=[],
            targets=[],
        )  # fmt: skip
    wanted = declared.wanted
    return NotificationsView(
        reason=None,
        portal_url=str(wanted.portal_url) if wanted.portal_url else None,
        give_up_after_s=wanted.give_up_after_s,
        buried_as=_BURIED_AS,
        rules=list(wanted.rules),
        targets=[await _target(ports, declared, target) for target in wanted.targets],
    )


@router.post("/notifications/{target}/test")
async def send_test(target: TargetName, who: Operator, ports: Ports) -> SentView:
    """Sends one message that says it is a test; what came of it is audited."""
    declared = _declared(who, ports)
    if declared is None or target not in declared.senders:
        raise NotFound("there is no such notification target")
    reason = None
    try:
        await declared.send_test(target, who.name)
    except (Unavailable, Rejected) as failed:
        reason = failed.message
    detail = {"sent": reason is None, "reason": reason}
    await ports.decisions.note(who, Attempt("notification.test", target, detail), allowed=True)
    return SentView(target=target, sent=reason is None, reason=reason)


def _declared(who: Principal, ports: ApiPorts) -> Declared | None:
    """That of the caller's tenant alone."""
    found = ports.notifications
    return found if found is not None and found.tenant == who.tenant else None


async def _target(ports: ApiPorts, declared: Declared, target: AnyTarget) -> TargetView:
    consumer = consumer_of(declared.tenant, target.name)
    handled = await Told(ports.database).handled(declared.tenant, consumer, limit=LOOKED_AT)
    told = [one for row in handled if (one := _told(declared, target.name, row)) is not None]
    return TargetView(
        name=target.name,
        kind=target.kind,
        decides=isinstance(target, SlackTarget) and target.signing_secret_file is not None,
        notices=list(declared.wanted.notices_for(target.name)),
        told=told[:SHOWN],
        **await _place(ports, consumer),
    )


async def _place(ports: ApiPorts, consumer: str) -> dict[str, Any]:
    """How far the consumer is, or why that is not known."""
    unknown: dict[str, Any] = {"waiting": None, "retried": None}
    if ports.consumers is None:
        return {**unknown, "reason": "this API is not told how far consumers are"}
    try:
        found = await ports.consumers.condition(consumer)
    except (Unavailable, Denied) as away:
        return {**unknown, "reason": away.message}
    if found is None:
        return {**unknown, "reason": "nothing tells this target: no notifier has run yet"}
    return {
        "waiting": found.waiting + found.in_hand,
        "retried": found.redelivered,
        "reason": None,
    }


def _told(declared: Declared, target: str, row: Row) -> ToldView | None:
    """None for what the rules keep from the target."""
    notice = _NOTICE_OF.get(row["type"])
    if notice is None:
        return None
    risk = Risk(row["risk"]) if row["risk"] is not None else None
    if not declared.wanted.sends(target, notice, risk, row["deployment"]):
        return None
    return ToldView(notice=notice, **{name: row[name] for name in _OF_TOLD})


_OF_TOLD = ("event_id", "at", "change", "title", "deployment")

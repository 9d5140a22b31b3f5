"""Decisions that people make in Slack."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from optiinfra.portal_api.auth import Permission, Ports, may, spend
from optiinfra.portal_api.notifications.slack import IN_CHANNEL, Verb
from optiinfra.portal_api.notifications.slack_desk import Pressed
from optiinfra.portal_api.ports import ApiPorts
from optiinfra.portal_api.problems import SignInNeeded
from optiinfra.schemas.errors import Denied, NotFound, OptiInfraError
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.access import Principal
from optiinfra.storage.postgres.audit import Attempt
from optiinfra.storage.postgres.decisions import Decision
from optiinfra.storage.rates import Bucket

router = APIRouter(tags=["slack"])
_VIA = "slack"
_DONE = {Verb.APPROVE: "approved", Verb.REJECT: "rejected"}


@router.post("/slack/actions")
async def pressed(request: Request, ports: Ports) -> Response:
    """What Slack sends when a button is pressed: a signed form. What came of it is said there."""
    found = ports.slack.read(request.headers, await request.body())
    if found is None:
        await spend(request, Bucket.REFUSED)
        raise SignInNeeded(
            "Slack has not signed this, or not lately",
            hint="signing_secret_file of the target must hold the Slack app's signing secret",
        )
    try:
        who = await _decide(ports, found)
    except OptiInfraError as refused:
        await ports.slack.answer(found, f"Nothing was done: {refused}", done=False)
    else:
        text = f"{_DONE[found.verb].capitalize()} by {who.name}: change {found.change[:8]}"
        await ports.slack.answer(found, text, done=True)
    return Response(status_code=200)


async def _decide(ports: ApiPorts, found: Pressed) -> Principal:
    """Gives the person's word. Denials are audited."""
    who = await _person(ports, found)
    try:
        await _require_allowed(ports, who, found)
        await ports.rates.spend(Bucket.DECISIONS, f"{who.tenant}/{who.name}")
        granted = found.verb is Verb.APPROVE
        reason = f"{_DONE[found.verb]} in Slack"
        decision = Decision(found.change, granted, found.version_hash, reason)
        await ports.decisions.decide(who, decision)
    except Denied as denied:
        detail = {"member": found.member, "target": found.door.target, "why": denied.message}
        attempt = Attempt(Permission.DECIDE.value, found.change, detail)
        await ports.decisions.note(who, attempt, allowed=False)
        raise
    return who


async def _person(ports: ApiPorts, found: Pressed) -> Principal:
    """The user behind a member of Slack; a viewer for somebody whom nobody has declared."""
    tenant, email = found.door.tenant, found.email
    known = await ports.people.users.by_email(tenant, email, via=_VIA) if email else None
    return known or Principal(_VIA, tenant, f"slack:{found.member}", Role.VIEWER, None)


async def _require_allowed(ports: ApiPorts, who: Principal, found: Pressed) -> None:
    if who.user_id is None:
        raise Denied(
            "nobody here goes by this Slack account",
            hint="an admin adds you as a user and to `people` of the Slack target",
        )
    if not may(who, Permission.DECIDE):
        raise Denied(f"{who.role.value} {who.name!r} may not decide")
    proposal = await ports.proposals.proposal(who.tenant, found.change)
    if proposal is None:
        raise NotFound(f"there is no recommendation {found.change}")
    if proposal.risk not in IN_CHANNEL:
        raise Denied(
            f"a change of {proposal.risk} risk is not decided in Slack",
            hint="look at its evidence in the portal",
        )

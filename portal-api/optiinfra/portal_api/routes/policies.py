"""The policies that were in force, and whether another one would be right."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from optiinfra.portal_api.auth import Ports, Reader
from optiinfra.portal_api.examples import shown_as
from optiinfra.portal_api.paging import Paged, PageOf
from optiinfra.portal_api.routes.snapshots import Snapshot
from optiinfra.schemas.policy_review import undeclared, warnings
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.wrong_keys import in_words

router = APIRouter(prefix="/policies", tags=["policies"])

Number = Annotated[int, Path(ge=1, lt=1 << 31)]


class PolicyView(BaseModel):
    """One recorded policy; `number` counts the tenant's, the greatest is in force."""

    number: int
    version: str
    sha256: str
    by: str
    written_at: AwareDatetime
    at: AwareDatetime
    in_force: bool


class PolicyDetail(PolicyView):
    model_config = shown_as("policy")

    policy: dict[str, Any]
    warnings: list[str] = Field(description="parts that never count, as `config check` gives them")


class PolicyBody(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"policy": {"name": "careful", "max_moving": 1}}]},
    )

    policy: dict[str, Any]


class CheckView(BaseModel):
    """What `optiinfra config check` would say; a wrong policy has no version."""

    model_config = shown_as("check")

    ok: bool
    version: str | None
    sha256: str | None
    errors: list[str]
    warnings: list[str]


@router.get("", response_model=PageOf[PolicyView], dependencies=[Snapshot])
async def policies(who: Reader, ports: Ports, paging: Paged, response: Response) -> Response:
    """All that a coordinator has recorded, the newest first."""
    found = await ports.reports.policies(who.tenant, paging.page(int))
    return paging.page_of(found, response)


@router.get("/current", dependencies=[Snapshot])
async def current_policy(who: Reader, ports: Ports) -> PolicyDetail:
    """The one in force, whole."""
    return _detail(await ports.reports.policy(who.tenant, None))


@router.get("/{number}", dependencies=[Snapshot])
async def policy(number: Number, who: Reader, ports: Ports) -> PolicyDetail:
    """One of them, whole."""
    return _detail(await ports.reports.policy(who.tenant, number))


@router.post("/check")
async def check_policy(body: PolicyBody, who: Reader, ports: Ports) -> CheckView:
    """Whether a policy is right and fits the fleet. Nothing is written."""
    try:
        rules = Rules.model_validate(body.policy)
    except ValidationError as invalid:
        return _wrong(in_words(invalid, Rules))
    errors = list(undeclared(rules, await ports.reports.deployment_ids(who.tenant)))
    if errors:
        return _wrong(errors)
    return CheckView(
        ok=True, version=rules.version, sha256=rules.sha256, errors=[], warnings=_doubts(rules)
    )


def _wrong(errors: list[str]) -> CheckView:
    return CheckView(ok=False, version=None, sha256=None, errors=errors, warnings=[])


def _doubts(rules: Rules) -> list[str]:
    return list(warnings(rules, datetime.now(UTC)))


def _detail(told: dict[str, Any]) -> PolicyDetail:
    """A policy of another release may have keys that this one does not know."""
    try:
        doubts = _doubts(Rules.model_validate(told["policy"]))
    except ValidationError as invalid:
        doubts = in_words(invalid, Rules)
    return PolicyDetail(**told, warnings=doubts)

"""The policies that were in force, and whether another one would be right."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from optiinfra.portal_api.auth import Ports, Reader
from optiinfra.portal_api.examples import shown_as
from optiinfra.portal_api.paging import Paged, PageOf
from optiinfra.portal_api.policy_text import (
    MOST_CHARACTERS,
    NotYaml,
    PolicyText,
    read_policy,
    written,
)
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
    text: str = Field(description="the same as YAML, without what is as the defaults are")
    warnings: list[str] = Field(description="parts that never count, as `config check` gives them")


class PolicyBody(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"policy": {"name": "careful", "max_moving": 1}}]},
    )

    policy: dict[str, Any] | Annotated[str, StringConstraints(max_length=MOST_CHARACTERS)] = Field(
        description="as a mapping, or as the text of its file, YAML; then findings have lines"
    )


class FindingView(BaseModel):
    """One error or warning; `line` is that of the text, from 1, where it has a place there."""

    kind: Literal["error", "warning"]
    says: str
    line: int | None


class CheckView(BaseModel):
    """What `optiinfra config check` would say; a wrong policy has no version."""

    model_config = shown_as("check")

    ok: bool
    version: str | None
    sha256: str | None
    errors: list[str]
    warnings: list[str]
    findings: list[FindingView] = Field(description="errors and warnings, each with its place")


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
    text = None
    if isinstance(body.policy, str):
        try:
            text = await asyncio.to_thread(read_policy, body.policy)
        except NotYaml as broken:
            return _view([FindingView(kind="error", says=broken.message, line=broken.line)])
    try:
        rules = Rules.model_validate(body.policy if text is None else text.content)
    except ValidationError as invalid:
        return _view(_found("error", in_words(invalid, Rules), text))
    errors = undeclared(rules, await ports.reports.deployment_ids(who.tenant))
    found = [*_found("error", errors, text), *_found("warning", _doubts(rules), text)]
    return _view(found, rules)


def _found(
    kind: Literal["error", "warning"], sayings: Iterable[str], text: PolicyText | None
) -> list[FindingView]:
    return [
        FindingView(kind=kind, says=one, line=text.line_of(one) if text else None)
        for one in sayings
    ]


def _view(found: list[FindingView], rules: Rules | None = None) -> CheckView:
    errors = [one.says for one in found if one.kind == "error"]
    good = rules if not errors else None
    return CheckView(
        ok=good is not None,
        version=good.version if good else None,
        sha256=good.sha256 if good else None,
        errors=errors,
        warnings=[one.says for one in found if one.kind == "warning"],
        findings=found,
    )


def _doubts(rules: Rules) -> list[str]:
    return list(warnings(rules, datetime.now(UTC)))


def _detail(told: dict[str, Any]) -> PolicyDetail:
    """A policy of another release may have keys that this one does not know."""
    try:
        doubts = _doubts(Rules.model_validate(told["policy"]))
    except ValidationError as invalid:
        doubts = in_words(invalid, Rules)
    return PolicyDetail(**told, text=written(told["policy"]), warnings=doubts)

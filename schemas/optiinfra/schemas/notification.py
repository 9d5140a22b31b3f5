"""Whom to tell what: targets and rules of one tenant, as its file declares them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, HttpUrl, model_validator

from optiinfra.schemas.base import Value
from optiinfra.schemas.ids import DeploymentId, Token
from optiinfra.schemas.recommendation import Risk


class Notice(StrEnum):
    """What somebody may want to be told; each is the prefix of an event."""

    APPROVAL_REQUESTED = "approval.requested"
    COMPLETED = "change.completed"
    ROLLED_BACK = "change.rolled_back"
    FAILED = "change.failed"
    VETOED = "change.vetoed"
    REJECTED = "change.rejected"
    PAUSED = "change.paused"
    QUALITY_REGRESSED = "quality.regressed"
    TELEMETRY_GAP = "telemetry.gap"
    AGENT_LOST = "agent.lost"
    SWITCH_TURNED = "switch.turned"


class Target(Value):
    """Somewhere to send to. Secrets stand in files of their own, named from this file's folder."""

    name: Token


class SlackTarget(Target):
    """A channel behind an incoming webhook, whose URL is a secret."""

    kind: Literal["slack"]
    url_file: Path
    signing_secret_file: Path | None = Field(
        default=None, description="the Slack app's; with it, approvals can be given in the channel"
    )
    people: dict[str, str] = Field(
        default={}, description="e-mail of the user here by member id in Slack"
    )

    @model_validator(mode="after")
    def _buttons_are_for_somebody(self) -> Self:
        if bool(self.people) != (self.signing_secret_file is not None):
            raise ValueError("signing_secret_file and people go together")
        return self


class WebhookTarget(Target):
    """Any HTTP endpoint; requests are signed as Standard Webhooks says."""

    kind: Literal["webhook"]
    url: HttpUrl
    secret_file: Path = Field(description="`whsec_…`: 24 to 64 bytes in base64")


class EmailTarget(Target):
    """A mail server that takes our mail; `tls` from the first byte, `starttls` before the rest."""

    kind: Literal["email"]
    host: str = Field(min_length=1)
    port: int = Field(default=587, ge=1, le=65_535)
    security: Literal["starttls", "tls", "none"] = "starttls"
    sender: str = Field(min_length=3, pattern=r"^[^\s<>]+@[^\s<>]+$")
    to: tuple[Annotated[str, Field(pattern=r"^[^\s<>]+@[^\s<>]+$")], ...] = Field(min_length=1)
    username: str | None = None
    password_file: Path | None = None

    @model_validator(mode="after")
    def _signs_in_wholly(self) -> Self:
        if (self.username is None) != (self.password_file is None):
            raise ValueError("username and password_file go together")
        if self.username is not None and self.security == "none":
            raise ValueError("a password would go in the clear: choose starttls or tls")
        return self


AnyTarget = Annotated[SlackTarget | WebhookTarget | EmailTarget, Field(discriminator="kind")]


class NotificationRule(Value):
    """Sends `notices` to `targets`. What is about no change has no risk and passes `min_risk`;
    what is about no deployment passes `deployments`."""

    notices: tuple[Notice, ...] = Field(default=tuple(Notice), min_length=1)
    min_risk: Risk | None = None
    deployments: tuple[DeploymentId, ...] = ()
    targets: tuple[Token, ...] = Field(min_length=1)

    def covers(self, notice: Notice, risk: Risk | None, deployment: str | None) -> bool:
        """Whether the rule sends this notice."""
        if notice not in self.notices:
            return False
        if self.min_risk is not None and risk is not None and not _reaches(risk, self.min_risk):
            return False
        return not self.deployments or deployment is None or deployment in self.deployments


class Notifications(Value):
    """All of a tenant; `portal_url` is where links lead."""

    portal_url: HttpUrl | None = None
    give_up_after_s: float = Field(
        default=86_400.0, gt=0, description="what could not be sent by then is a dead letter, s"
    )
    targets: tuple[AnyTarget, ...] = Field(min_length=1)
    rules: tuple[NotificationRule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        names = [target.name for target in self.targets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two targets are named {', '.join(twice)}")
        used = {name for rule in self.rules for name in rule.targets}
        if unknown := sorted(used - set(names)):
            raise ValueError(f"no target is named {', '.join(unknown)}")
        if unused := sorted(set(names) - used):
            raise ValueError(f"no rule sends anything to {', '.join(unused)}")
        return self

    def notices_for(self, target: str) -> tuple[Notice, ...]:
        """All that some rule may send to a target, in their order."""
        wanted = {one for rule in self.rules if target in rule.targets for one in rule.notices}
        return tuple(one for one in Notice if one in wanted)

    def sends(self, target: str, notice: Notice, risk: Risk | None, deployment: str | None) -> bool:
        """Whether any rule sends this notice to a target."""
        return any(
            target in rule.targets and rule.covers(notice, risk, deployment) for rule in self.rules
        )


def _reaches(risk: Risk, least: Risk) -> bool:
    ranks = list(Risk)
    return ranks.index(risk) >= ranks.index(least)

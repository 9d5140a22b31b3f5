"""Which policy is in force: the newest recorded one, and when a file makes a newer one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from optiinfra.events.tenant_facts import PolicyChanged
from optiinfra.schemas.rules import Rules
from optiinfra.storage.postgres.policies import PolicyRecord

_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class PolicyOnFile:
    """What a file says; `edited` when it was seen to change while it was being watched.

    `written_at` is the file's own age by its host's clock, `by` names it for the log.
    """

    rules: Rules
    written_at: datetime
    by: str
    edited: bool = False


def supersedes(found: PolicyOnFile, newest: PolicyRecord | None) -> bool:
    """Whether the file's policy takes the place of the newest recorded one.

    An edit that was seen always does. A file that was found at the start does when it is younger
    than the one that was recorded: so a coordinator with an older file turns nothing back.
    """
    if newest is None:
        return True
    if found.rules.version == newest.version:
        return False
    younger = found.written_at > newest.written_at
    return found.edited or younger or _renamed(found, newest)


def _renamed(found: PolicyOnFile, newest: PolicyRecord) -> bool:
    """Whether another release recorded the same content, which this one names otherwise."""
    return (rules := rules_of(newest)) is not None and rules.version == found.rules.version


def rules_of(record: PolicyRecord) -> Rules | None:
    """The recorded policy; None when this release does not understand it."""
    try:
        return Rules.model_validate_json(record.body)
    except ValidationError:
        return None


def change(
    found: PolicyOnFile, newest: PolicyRecord | None, tenant: str, now: datetime
) -> PolicyChanged:
    """The fact that the file's policy is in force from `now` (the database's clock) on.

    The recorded ages of files rise strictly and lie never in the future, whatever the clocks of
    hosts say: a clock that is ahead must not shut later edits out.
    """
    written = min(found.written_at, now)
    if newest is not None:
        written = max(written, newest.written_at + _TICK)
    return PolicyChanged(
        tenant=tenant,
        number=newest.number + 1 if newest else 1,
        version=found.rules.version,
        previous=newest.version if newest else None,
        sha256=found.rules.sha256,
        policy=found.rules.model_dump(mode="json"),
        by=found.by,
        written_at=written,
        at=now,
    )

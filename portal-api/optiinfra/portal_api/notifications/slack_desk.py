"""Takes what people press in Slack: Slack's signature proves who, the table of users says what."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import structlog

from optiinfra.portal_api.notifications.senders import posted
from optiinfra.portal_api.notifications.slack import Verb
from optiinfra.schemas.errors import OptiInfraError, Rejected

FRESH_S = 300.0
"""Slack's own bound: what is older was recorded and played again."""
_VALUE = re.compile(r"([0-9a-f]{32})\.([0-9a-f]{16})")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Door:
    """One Slack target whose messages have buttons; answers go to the host of its webhook."""

    target: str
    tenant: str
    secret: bytes
    people: Mapping[str, str]
    host: str


@dataclass(frozen=True, slots=True)
class Pressed:
    """One button that somebody has pressed; `member` is Slack's name of who it was."""

    door: Door
    member: str
    verb: Verb
    change: str
    version_hash: str
    answer_url: str

    @property
    def email(self) -> str | None:
        """Who that is here; None when the target's file does not say."""
        return self.door.people.get(self.member)


class SlackDesk:
    """All doors of this process."""

    def __init__(
        self,
        doors: Sequence[Door],
        http: httpx.AsyncClient | None,
        clock: Callable[[], datetime],
    ) -> None:
        self._doors, self._http, self._clock = tuple(doors), http, clock

    def read(self, headers: Mapping[str, str], body: bytes) -> Pressed | None:
        """What was pressed; None when no door's secret has signed it just now.

        Raises `Rejected` for what is signed and is no button of ours.
        """
        at, given = headers.get("x-slack-request-timestamp", ""), headers.get("x-slack-signature")
        if given is None or not at.isdigit():
            return None
        if abs(self._clock().timestamp() - int(at)) > FRESH_S:
            return None
        for door in self._doors:
            made = hmac.new(door.secret, b"v0:" + at.encode() + b":" + body, hashlib.sha256)
            if hmac.compare_digest(f"v0={made.hexdigest()}".encode(), given.encode()):
                return _pressed(door, body)
        return None

    async def answer(self, pressed: Pressed, text: str, *, done: bool) -> None:
        """Says so in the channel in place of the message, or to who pressed alone.

        It is told, and no more, when Slack cannot be reached: the decision stands.
        """
        assert self._http is not None, "who has doors can answer"
        told: dict[str, Any] = {"text": text, "replace_original": done}
        if not done:
            told["response_type"] = "ephemeral"
        try:
            await posted(self._http, pressed.answer_url, json.dumps(told).encode(), {}, to="Slack")
        except OptiInfraError as failed:
            log.warning("slack.not_answered", target=pressed.door.target, reason=str(failed))


def closed_desk() -> SlackDesk:
    """Nobody can decide in Slack."""
    return SlackDesk((), None, lambda: datetime.now(UTC))


def _pressed(door: Door, body: bytes) -> Pressed:
    try:
        told = json.loads(parse_qs(body.decode())["payload"][0])
        (action,) = told["actions"]
        member, url = str(told["user"]["id"]), str(told["response_url"])
        verb, value = Verb(action["action_id"]), _VALUE.fullmatch(str(action["value"]))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as broken:
        raise Rejected("this is no button of OptiInfra's") from broken
    if value is None or urlsplit(url).netloc != door.host:
        raise Rejected("this is no button of OptiInfra's")
    return Pressed(door, member, verb, value[1], value[2], url)

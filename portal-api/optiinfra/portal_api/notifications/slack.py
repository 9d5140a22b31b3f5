"""A message in a Slack channel, through an incoming webhook."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

import httpx

from optiinfra.portal_api.notifications.message import Message
from optiinfra.portal_api.notifications.senders import posted
from optiinfra.schemas.notification import Notice
from optiinfra.schemas.recommendation import Risk

IN_CHANNEL = (Risk.LOW, Risk.MEDIUM)
"""What may be decided there; for more, a person looks at all of the evidence first."""
MOST_TITLE, MOST_TEXT = 250, 2_900
"""Slack takes 3,000 characters a section."""


class Verb(StrEnum):
    """What a button does."""

    APPROVE = "optiinfra.approve"
    REJECT = "optiinfra.reject"


class SlackSender:
    """`buttons`: approvals of a risk that may be decided in the channel can be decided there."""

    def __init__(
        self, name: str, url: str, http: httpx.AsyncClient, *, buttons: bool = False
    ) -> None:
        self._name, self._url, self._http, self._buttons = name, url, http, buttons

    async def send(self, message: Message) -> None:
        body = json.dumps(content(message, buttons=self._buttons)).encode()
        await posted(self._http, self._url, body, {}, to=f"Slack target {self._name}")


def content(message: Message, *, buttons: bool = False) -> dict[str, Any]:
    """The message as Block Kit; `text` is what a notification on a phone shows."""
    title = _escaped(message.title)[:MOST_TITLE]
    lines = "\n".join(_escaped(line) for line in message.lines)[:MOST_TEXT]
    blocks = [_section(f"*{title}*"), *([_section(lines)] if lines else [])]
    if message.link:
        blocks.append(_section(f"<{message.link}|Open in OptiInfra>"))
    if buttons and message.notice is Notice.APPROVAL_REQUESTED and message.risk in IN_CHANNEL:
        value = f"{message.change}.{message.version_hash}"
        blocks.append({"type": "actions", "elements": [_button(verb, value) for verb in Verb]})
    return {"text": title, "blocks": blocks}


def _button(verb: Verb, value: str) -> dict[str, Any]:
    return {
        "type": "button",
        "action_id": verb.value,
        "value": value,
        "style": "primary" if verb is Verb.APPROVE else "danger",
        "text": {"type": "plain_text", "text": verb.name.capitalize()},
        "confirm": {
            "title": {"type": "plain_text", "text": "Are you sure?"},
            "text": {"type": "plain_text", "text": "It is recorded in your name."},
            "confirm": {"type": "plain_text", "text": verb.name.capitalize()},
            "deny": {"type": "plain_text", "text": "Back"},
        },
    }


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def _escaped(text: str) -> str:
    """What Slack would read as its own: nobody's reason may mention a whole channel."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

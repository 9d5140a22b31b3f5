"""A message in a Slack channel, through an incoming webhook."""

from __future__ import annotations

import json
from typing import Any

import httpx

from optiinfra.portal_api.notifications.message import Message
from optiinfra.portal_api.notifications.senders import posted

MOST_TITLE, MOST_TEXT = 250, 2_900
"""Slack takes 3,000 characters a section."""


class SlackSender:
    def __init__(self, name: str, url: str, http: httpx.AsyncClient) -> None:
        self._name, self._url, self._http = name, url, http

    async def send(self, message: Message) -> None:
        body = json.dumps(content(message)).encode()
        await posted(self._http, self._url, body, {}, to=f"Slack target {self._name}")


def content(message: Message) -> dict[str, Any]:
    """The message as Block Kit; `text` is what a notification on a phone shows."""
    title = _escaped(message.title)[:MOST_TITLE]
    lines = "\n".join(_escaped(line) for line in message.lines)[:MOST_TEXT]
    blocks = [_section(f"*{title}*"), *([_section(lines)] if lines else [])]
    if message.link:
        blocks.append(_section(f"<{message.link}|Open in OptiInfra>"))
    return {"text": title, "blocks": blocks}


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def _escaped(text: str) -> str:
    """What Slack would read as its own: nobody's reason may mention a whole channel."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

"""A signed JSON request, as Standard Webhooks 1.0 has it (standardwebhooks.com)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import datetime

import httpx

from optiinfra.portal_api.notifications.message import Message
from optiinfra.portal_api.notifications.senders import posted
from optiinfra.schemas.errors import Rejected

PREFIX = "whsec_"
LEAST_BYTES, MOST_BYTES = 24, 64
TEST = "notification.test"
"""The type of what is no notice."""


def secret_key(text: str, *, of: str) -> bytes:
    """The key in `whsec_<base64>`. Raises `Rejected` naming the target `of`."""
    try:
        key = base64.b64decode(text.strip().removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not LEAST_BYTES <= len(key) <= MOST_BYTES:
        raise Rejected(
            f"target {of}: its secret must be {PREFIX} and {LEAST_BYTES}-{MOST_BYTES} base64 bytes",
            hint=f"make one: echo {PREFIX}$(openssl rand -base64 32)",
        )
    return key


class WebhookSender:
    """Sends what happened as data; a receiver checks the signature and drops repeats by id."""

    def __init__(
        self,
        name: str,
        url: str,
        key: bytes,
        http: httpx.AsyncClient,
        clock: Callable[[], datetime],
    ) -> None:
        self._name, self._url, self._key = name, url, key
        self._http, self._clock = http, clock

    async def send(self, message: Message) -> None:
        body = json.dumps(_content(message)).encode()
        at = str(int(self._clock().timestamp()))
        headers = {
            "webhook-id": message.id,
            "webhook-timestamp": at,
            "webhook-signature": f"v1,{_signature(self._key, message.id, at, body)}",
        }
        await posted(self._http, self._url, body, headers, to=f"webhook {self._name}")


def _signature(key: bytes, name: str, at: str, body: bytes) -> str:
    signed = f"{name}.{at}.".encode() + body
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def _content(message: Message) -> dict[str, object]:
    return {
        "type": message.notice.value if message.notice else TEST,
        "timestamp": message.at.isoformat(),
        "data": {
            "event": message.id,
            "tenant": message.tenant,
            "title": message.title,
            "lines": list(message.lines),
            "change": message.change,
            "deployment": message.deployment,
            "risk": message.risk.value if message.risk else None,
            "version_hash": message.version_hash,
            "link": message.link,
        },
    }

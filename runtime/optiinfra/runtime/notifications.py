"""Reads the notifications file and the secrets that it names, and makes who tells."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from optiinfra.events.bus_roles import BusRole
from optiinfra.portal_api.notifications.declared import Declared
from optiinfra.portal_api.notifications.mail import MailSender
from optiinfra.portal_api.notifications.notifier import Notifier, NotifierPorts
from optiinfra.portal_api.notifications.senders import Sender
from optiinfra.portal_api.notifications.slack import SlackSender
from optiinfra.portal_api.notifications.slack_desk import Door, SlackDesk, closed_desk
from optiinfra.portal_api.notifications.webhook import WebhookSender, secret_key
from optiinfra.runtime.fleet import Fleet
from optiinfra.runtime.stores import Stores, jitter, new_id, now
from optiinfra.runtime.yaml_file import FileKind, content_of, wrong
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.notification import (
    AnyTarget,
    EmailTarget,
    Notifications,
    SlackTarget,
    WebhookTarget,
)
from optiinfra.storage.postgres.inbox import PostgresInbox
from optiinfra.storage.postgres.proposals import Proposals

_SLACK_URLS = ("https://", "http://127.0.0.1:", "http://localhost:")
"""The URL is the secret: it does not go in the clear, but for a proxy on this machine."""
NOTIFICATIONS_FILE = FileKind(
    "notifications file", Notifications, "docs/notifications.md", needs="targets"
)


def load_notifications(path: Path) -> Notifications:
    """Reads and checks the file, and that every secret which it names is there.

    Raises `Rejected` naming what is wrong and what to do.
    """
    try:
        wanted = Notifications.model_validate(content_of(path, NOTIFICATIONS_FILE))
    except ValidationError as invalid:
        raise wrong(path, NOTIFICATIONS_FILE, invalid) from invalid
    folder = path.absolute().parent
    for target in wanted.targets:
        _secret_of(target, folder)
    _doors("", wanted, folder)
    return wanted


async def slack_desk(fleet: Fleet, stack: AsyncExitStack) -> SlackDesk:
    """Where the API takes what people press in Slack; its connections close with `stack`."""
    if fleet.notifications is None:
        return closed_desk()
    wanted, folder = load_notifications(fleet.notifications), fleet.notifications.absolute().parent
    doors = _doors(fleet.tenant, wanted, folder)
    http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
    return SlackDesk(doors, http, now) if doors else closed_desk()


async def declared(fleet: Fleet, stack: AsyncExitStack) -> Declared | None:
    """What the API shows of the targets and sends tests through; connections close with `stack`."""
    if fleet.notifications is None:
        return None
    wanted = load_notifications(fleet.notifications)
    http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
    senders = _senders(wanted, fleet.notifications.absolute().parent, http)
    return Declared(fleet.tenant, wanted, senders, new_id, now)


def _doors(tenant: str, wanted: Notifications, folder: Path) -> list[Door]:
    return [
        Door(
            target=target.name,
            tenant=tenant,
            secret=_read(target.name, folder, target.signing_secret_file).encode(),
            people=target.people,
            host=urlsplit(_secret_of(target, folder)).netloc,
        )
        for target in wanted.targets
        if isinstance(target, SlackTarget) and target.signing_secret_file is not None
    ]


@asynccontextmanager
async def notifiers(fleet: Fleet, stores: Stores) -> AsyncIterator[list[Notifier]]:
    """One a target of the fleet's notifications file; none when it names no such file."""
    if fleet.notifications is None:
        yield []
        return
    wanted, folder = load_notifications(fleet.notifications), fleet.notifications.absolute().parent
    stores = stores.acting_as(BusRole.NOTIFIER)
    ports = NotifierPorts(
        bus=stores.bus,
        publisher=stores.publisher("notifier"),
        inbox=PostgresInbox(stores.database),
        proposals=Proposals(stores.database),
        clock=now,
        jitter=jitter,
    )
    async with httpx.AsyncClient(trust_env=False) as http:
        yield [
            Notifier(fleet.tenant, target, wanted, sender, ports)
            for target, sender in _senders(wanted, folder, http).items()
        ]


def _senders(wanted: Notifications, folder: Path, http: httpx.AsyncClient) -> dict[str, Sender]:
    """The way to each target, by its name."""
    return {
        target.name: _sender(target, _secret_of(target, folder), http) for target in wanted.targets
    }


def _sender(target: AnyTarget, secret: str, http: httpx.AsyncClient) -> Sender:
    match target:
        case EmailTarget():
            return MailSender(target, secret or None)
        case SlackTarget():
            buttons = target.signing_secret_file is not None
            return SlackSender(target.name, secret, http, buttons=buttons)
        case WebhookTarget():
            key = secret_key(secret, of=target.name)
            return WebhookSender(target.name, str(target.url), key, http, now)


def _secret_of(target: AnyTarget, folder: Path) -> str:
    """The target's secret, which is good; empty for mail without password. Errors never show it."""
    match target:
        case EmailTarget():
            named = target.password_file
            return _read(target.name, folder, named) if named else ""
        case SlackTarget():
            url = _read(target.name, folder, target.url_file)
            if not url.startswith(_SLACK_URLS):
                raise Rejected(
                    f"target {target.name}: {target.url_file} holds no https:// URL",
                    hint="copy the incoming webhook's URL from Slack into it",
                )
            return url
        case WebhookTarget():
            secret = _read(target.name, folder, target.secret_file)
            secret_key(secret, of=target.name)
            return secret


def _read(target: str, folder: Path, file: Path) -> str:
    try:
        text = (folder / file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as unreadable:
        why = getattr(unreadable, "strerror", None) or "it is not text"
        raise Rejected(
            f"target {target}: the secret file {file} cannot be read: {why}",
            hint=f"its path starts at {folder}",
        ) from None
    if not text:
        raise Rejected(f"target {target}: the secret file {file} is empty")
    return text

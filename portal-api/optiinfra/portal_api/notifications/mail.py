"""A message by e-mail."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from email.message import EmailMessage
from email.utils import format_datetime

from optiinfra.portal_api.notifications.message import Message
from optiinfra.portal_api.notifications.senders import TIMEOUT_S
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.schemas.notification import EmailTarget

_PASSING = 500
"""SMTP replies under this are passing (RFC 5321, section 4.2.1)."""


class MailSender:
    """Hands mail to one server, in a thread: smtplib blocks."""

    def __init__(
        self, target: EmailTarget, password: str | None, *, trust: ssl.SSLContext | None = None
    ) -> None:
        self._target, self._password = target, password
        self._trust = trust or ssl.create_default_context()

    async def send(self, message: Message) -> None:
        await asyncio.to_thread(self._send, mail(message, self._target))

    def _send(self, made: EmailMessage) -> None:
        target = self._target
        try:
            with self._connected() as server:
                if target.security == "starttls":
                    server.starttls(context=self._trust)
                if target.username is not None and self._password is not None:
                    server.login(target.username, self._password)
                refused = server.send_message(made)
        except smtplib.SMTPRecipientsRefused as refusal:
            codes = [code for code, _ in refusal.recipients.values()]
            raise _failed(target.name, min(codes), "it takes none of the recipients") from None
        except smtplib.SMTPResponseException as failed:
            said = type(failed).__name__
            raise _failed(target.name, failed.smtp_code, said) from None
        except (smtplib.SMTPException, OSError) as failed:
            raise Unavailable(
                f"mail target {target.name}: {target.host}:{target.port}: {failed}"
            ) from failed
        if refused:
            raise Rejected(
                f"mail target {target.name}: refused for {', '.join(sorted(refused))}",
                hint="the others have got it; correct `to`",
            )

    def _connected(self) -> smtplib.SMTP:
        target = self._target
        if target.security == "tls":
            return smtplib.SMTP_SSL(
                target.host, target.port, timeout=TIMEOUT_S, context=self._trust
            )
        return smtplib.SMTP(target.host, target.port, timeout=TIMEOUT_S)


def mail(message: Message, target: EmailTarget) -> EmailMessage:
    """The mail; its Message-ID is the event's, so that a repeat is known as one."""
    made = EmailMessage()
    made["Subject"] = f"[OptiInfra {message.tenant}] {' '.join(message.title.split())}"
    made["From"] = target.sender
    made["To"] = ", ".join(target.to)
    made["Date"] = format_datetime(message.at)
    made["Message-ID"] = f"<{message.id}@{target.sender.rpartition('@')[2]}>"
    made["Auto-Submitted"] = "auto-generated"
    made.set_content(message.text + "\n")
    return made


def _failed(name: str, code: int, why: str) -> Rejected | Unavailable:
    said = f"mail target {name}: {why} ({code})"
    if code < _PASSING:
        return Unavailable(said)
    return Rejected(said, hint="check the target's sender, recipients and password")

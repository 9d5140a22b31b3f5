"""Mail to a server that checks who sends it, over TLS, and refuses what it is told to."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from optiinfra.portal_api.notifications.mail import MailSender
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.schemas.notification import EmailTarget
from tests.integration.test_notifier import free_port, message


@dataclass
class Mailbox:
    """A mail server's end: it takes mail for anybody but those in `refuses`."""

    refuses: dict[str, str] = field(default_factory=dict)
    came: list[Envelope] = field(default_factory=list)

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, to: str, _options: list[str]
    ) -> str:
        if to in self.refuses:
            return self.refuses[to]
        envelope.rcpt_tos.append(to)
        return "250 OK"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        self.came.append(envelope)
        return "250 taken"


def certificate(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a server for `localhost` shows, and what a client trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    today = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    shown = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    shown.load_cert_chain(pem)
    return shown, ssl.create_default_context(cafile=str(pem))


def signs_in(_server: SMTP, _session: Session, _envelope: Envelope, _how: str, who: Any) -> Any:
    good = isinstance(who, LoginPassword) and (who.login, who.password) == (b"oi", b"hunter2")
    return AuthResult(success=good, handled=good)


@asynccontextmanager
async def mail_server(box: Mailbox, **options: Any) -> AsyncIterator[int]:
    controller = Controller(box, hostname="127.0.0.1", port=free_port(), **options)
    async with AsyncExitStack() as stack:
        await asyncio.to_thread(controller.start)
        stack.push_async_callback(asyncio.to_thread, controller.stop)
        yield controller.port


def target(port: int, **changes: Any) -> EmailTarget:
    return EmailTarget.model_validate(
        {
            "name": "mail", "kind": "email", "host": "localhost", "port": port,
            "security": "none", "sender": "oi@example.com", "to": ["ada@example.com"], **changes,
        }
    )  # fmt: skip


async def test_mail_goes_out_encrypted_and_signed_in(tmp_path: Path) -> None:
    shown, trust = certificate(tmp_path)
    box = Mailbox()
    options = {"tls_context": shown, "require_starttls": True, "authenticator": signs_in}
    async with mail_server(box, auth_required=True, **options) as port:
        made = target(port, security="starttls", username="oi", password_file="p")
        await MailSender(made, "hunter2", trust=trust).send(message())
        with pytest.raises(Rejected, match="SMTPAuthenticationError"):
            await MailSender(made, "wrong", trust=trust).send(message())
        with pytest.raises(Unavailable, match="certificate verify failed"):
            await MailSender(made, "hunter2").send(message())
    (mail,) = box.came
    assert mail.rcpt_tos == ["ada@example.com"]
    assert b"Subject: [OptiInfra acme] Completed" in (mail.content or b"")
    assert b"all of it" in (mail.content or b"")


@pytest.mark.parametrize(("reply", "kind"), [("450 busy", Unavailable), ("550 nobody", Rejected)])
async def test_a_recipient_that_is_refused_is_tried_again_or_not_as_the_server_says(
    reply: str, kind: type[Exception]
) -> None:
    async with mail_server(Mailbox(refuses={"ada@example.com": reply})) as port:
        with pytest.raises(kind, match="takes none of the recipients"):
            await MailSender(target(port), None).send(message())


async def test_one_refused_recipient_does_not_keep_the_mail_from_the_others() -> None:
    box = Mailbox(refuses={"bob@example.com": "550 nobody"})
    async with mail_server(box) as port:
        both = target(port, to=["ada@example.com", "bob@example.com"])
        with pytest.raises(Rejected, match=r"refused for bob@example\.com"):
            await MailSender(both, None).send(message())
    assert box.came[0].rcpt_tos == ["ada@example.com"]


async def test_a_mail_server_that_is_away_is_tried_again() -> None:
    with pytest.raises(Unavailable, match="mail target mail: localhost"):
        await MailSender(target(free_port()), None).send(message())

"""Whom to tell what: the rules, and the words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from optiinfra.events import facts as f
from optiinfra.portal_api.notifications.mail import mail
from optiinfra.portal_api.notifications.message import Message, message_of, notice_of
from optiinfra.portal_api.notifications.slack import content
from optiinfra.runtime.notifications import load_notifications
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.money import Interval
from optiinfra.schemas.notification import EmailTarget, Notice, Notifications
from optiinfra.schemas.recommendation import Recommendation, Risk
from tests.factories import AT, event, recommendation

HOOK: dict[str, Any] = {
    "name": "hook", "kind": "webhook", "url": "https://hook.example/x", "secret_file": "hook.key",
}  # fmt: skip
SLACK: dict[str, Any] = {"name": "ops", "kind": "slack", "url_file": "slack.url"}
MAIL: dict[str, Any] = {
    "name": "mail", "kind": "email", "host": "mail.example", "sender": "oi@example.com",
    "to": ["ada@example.com", "bob@example.com"],
}  # fmt: skip
GOOD_KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PORTAL = "https://portal.example/"


def wanted(*rules: dict[str, Any], targets: tuple[dict[str, Any], ...] = (HOOK,)) -> Notifications:
    chosen = rules or ({"targets": [one["name"] for one in targets]},)
    return Notifications.model_validate({"targets": targets, "rules": chosen})


def asked(proposal: Recommendation, needed: int = 1) -> f.ApprovalRequested:
    return f.ApprovalRequested(
        change=proposal.id, version_hash="0123456789abcdef", risk=proposal.risk, expires_at=AT,
        needed=needed, reason="no rule approves it",
    )  # fmt: skip


def test_a_rule_without_limits_sends_everything() -> None:
    rules = wanted()
    assert rules.notices_for("hook") == tuple(Notice)
    assert all(rules.sends("hook", notice, None, None) for notice in Notice)


def test_rules_limit_by_notice_risk_and_deployment() -> None:
    rule = {
        "notices": ["approval.requested", "agent.lost"], "min_risk": "medium",
        "deployments": ["chat"], "targets": ["hook"],
    }  # fmt: skip
    rules = wanted(rule)
    approval = Notice.APPROVAL_REQUESTED
    assert rules.sends("hook", approval, Risk.HIGH, "chat")
    assert not rules.sends("hook", approval, Risk.LOW, "chat")
    assert not rules.sends("hook", approval, Risk.HIGH, "search")
    assert not rules.sends("hook", Notice.COMPLETED, Risk.HIGH, "chat")
    assert rules.sends("hook", Notice.AGENT_LOST, None, None)
    assert not rules.sends("ops", approval, Risk.HIGH, "chat")
    assert rules.notices_for("hook") == (approval, Notice.AGENT_LOST)


@pytest.mark.parametrize(
    ("targets", "rules", "said"),
    [
        ((HOOK, HOOK), ({"targets": ["hook"]},), "two targets are named hook"),
        ((HOOK,), ({"targets": ["hook", "opps"]},), "no target is named opps"),
        ((HOOK, SLACK), ({"targets": ["hook"]},), "no rule sends anything to ops"),
        (({**SLACK, "people": {"U1": "a@b"}},), ({"targets": ["ops"]},), "go together"),
        (({**SLACK, "signing_secret_file": "s"},), ({"targets": ["ops"]},), "go together"),
        (({**MAIL, "username": "oi"},), ({"targets": ["mail"]},), "go together"),
        (
            ({**MAIL, "username": "oi", "password_file": "p", "security": "none"},),
            ({"targets": ["mail"]},),
            "in the clear",
        ),
        (({**MAIL, "to": ["ada"]},), ({"targets": ["mail"]},), "to.0"),
    ],
)
def test_what_cannot_be_is_refused(
    targets: tuple[dict[str, Any], ...], rules: tuple[dict[str, Any], ...], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        wanted(*rules, targets=targets)


def test_a_password_may_go_over_tls() -> None:
    target = EmailTarget.model_validate({**MAIL, "username": "oi", "password_file": "p"})
    assert target.security == "starttls"


def test_an_approval_is_asked_for_with_all_that_a_reader_needs() -> None:
    saving = Interval(low=100, mid=1_200, high=2_000)
    proposal = recommendation(saving_usd_per_month=saving)
    message = message_of(event(asked(proposal, needed=2)), proposal, PORTAL)
    assert message.title == f"Approval needed (low risk): chat: {proposal.title}"
    assert "2 people must decide until" in message.text
    assert "version 0123456789abcdef" in message.text
    assert "predicted saving: 100 to 2,000 $ a month" in message.lines
    assert message.link == f"https://portal.example/recommendations/{proposal.id}"
    assert message.text.endswith(message.link)
    assert (message.deployment, message.risk) == ("chat", Risk.LOW)
    one = message_of(event(asked(proposal)), proposal, None)
    assert "a person must decide" in one.text
    assert one.link is None


CHANGE = recommendation().id


@pytest.mark.parametrize(
    ("fact", "title", "line"),
    [
        (f.ChangeRolledBack(change=CHANGE, reason="too slow"), "Rolled back", "too slow"),
        (f.ChangeFailed(change=CHANGE, reason="lost"), "FAILED, a person is needed", "lost"),
        (
            f.ChangeVetoed(change=CHANGE, by=("resource",), reasons=("no room",)),
            "Vetoed by resource",
            "no room",
        ),
        (f.ChangeRejected(change=CHANGE, by="ada", reason="no"), "Rejected by ada", "no"),
        (f.ChangePaused(change=CHANGE, by="ada", reason="wait"), "Paused by ada", "wait"),
        (
            f.QualityRegressed(change=CHANGE, reason="worse"),
            "Quality alarm, it is being undone",
            "worse",
        ),
        (
            f.TelemetryGap(
                tenant="acme", deployment="chat", metrics=("x",), engine="vllm", detail="gone",
                at=AT,
            ),
            "Telemetry is missing on chat",
            "gone",
        ),
        (
            f.AgentLost(tenant="acme", agent="cost", instance="one", last_seen_at=AT),
            "The cost agent is silent",
            "instance one",
        ),
        (
            f.SwitchTurned(tenant="acme", stopped=True, by="ada", reason="fire", at=AT),
            "The stop switch was turned ON by ada",
            "fire",
        ),
        (
            f.SwitchTurned(tenant="acme", stopped=False, by="ada", reason="out", at=AT),
            "The stop switch was turned off by ada",
            "out",
        ),
    ],
)  # fmt: skip
def test_each_notice_is_told_in_words(fact: f.Fact, title: str, line: str) -> None:
    message = message_of(event(fact), None, None)
    assert message.title == title
    assert line in message.lines
    assert message.notice is notice_of(event(fact))


def test_what_nobody_is_told_of_has_no_notice() -> None:
    opened = f.ChangeOpened(change=CHANGE, deployment="chat", rules_version="1")
    with pytest.raises(ValueError, match=r"change\.opened"):
        notice_of(event(opened))


def told(title: str = "Completed", *lines: str) -> Message:
    return Message(
        id="e" * 32, notice=Notice.COMPLETED, tenant="acme", at=AT, title=title, lines=lines
    )


def test_a_reason_cannot_mention_a_whole_channel() -> None:
    shown = json.dumps(content(told("Completed <!channel>", "a & b > c")))
    assert "<!channel>" not in shown
    assert "a &amp; b &gt; c" in shown


def test_buttons_stand_where_a_decision_may_be_made_in_the_channel() -> None:
    for risk, shown in ((Risk.LOW, True), (Risk.MEDIUM, True), (Risk.HIGH, False)):
        proposal = recommendation(risk=risk, risk_reasons=("because",))
        message = message_of(event(asked(proposal)), proposal, None)
        kinds = [block["type"] for block in content(message, buttons=True)["blocks"]]
        assert ("actions" in kinds) is shown
        assert "actions" not in json.dumps(content(message))
    assert "actions" not in json.dumps(content(told(), buttons=True))


def test_slack_gets_no_more_than_it_takes() -> None:
    long = content(told("t" * 5_000, "l" * 5_000))
    assert all(len(block["text"]["text"]) <= 3_000 for block in long["blocks"])


def test_a_mail_cannot_be_given_another_header() -> None:
    made = mail(told("Completed\nBcc: eve@example.com"), EmailTarget.model_validate(MAIL))
    assert made["Bcc"] is None
    assert made["Subject"] == "[OptiInfra acme] Completed Bcc: eve@example.com"
    assert made["Message-ID"] == f"<{'e' * 32}@example.com>"
    assert made["To"] == "ada@example.com, bob@example.com"


def written(folder: Path, *targets: dict[str, Any]) -> Path:
    path = folder / "notifications.yaml"
    rules = [{"targets": [one["name"] for one in targets]}]
    path.write_text(json.dumps({"targets": targets, "rules": rules}))
    return path


def test_a_file_is_read_with_the_secrets_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "hook.key").write_text(GOOD_KEY)
    (tmp_path / "slack.url").write_text("https://hooks.slack.com/services/T/B/x\n")
    (tmp_path / "p").write_text("hunter2")
    signed_in = {**MAIL, "username": "oi", "password_file": "p"}
    found = load_notifications(written(tmp_path, HOOK, SLACK, signed_in))
    assert [one.name for one in found.targets] == ["hook", "ops", "mail"]
    assert load_notifications(written(tmp_path, MAIL)).targets[0].name == "mail"


@pytest.mark.parametrize(
    ("target", "content", "said"),
    [
        (HOOK, None, "hook.key cannot be read: No such file"),
        (HOOK, "", "hook.key is empty"),
        (HOOK, "whsec_c2hvcnQ=", "target hook: its secret must be whsec_"),
        (HOOK, "not base64 at all", "target hook: its secret must be whsec_"),
        (
            {**SLACK, "signing_secret_file": "missing", "people": {"U1": "a@b"}},
            "https://hooks.slack.com/services/T/B/x",
            "missing cannot be read",
        ),
        (SLACK, "http://hooks.slack.com/services/T/B/x", "slack.url holds no https:// URL"),
    ],
)
def test_a_secret_that_is_not_good_is_told_without_showing_it(
    tmp_path: Path, target: dict[str, Any], content: str | None, said: str
) -> None:
    file = tmp_path / (target.get("secret_file") or target["url_file"])
    if content is not None:
        file.write_text(content)
    with pytest.raises(Rejected, match=said) as refused:
        load_notifications(written(tmp_path, target))
    assert not content or content not in str(refused.value)


def test_a_bad_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"targets\.0\.slack\.url_fil: there is no such key"):
        load_notifications(written(tmp_path, {**SLACK, "url_fil": "x"}))

"""The tables, as SQLAlchemy models; migrations are compared with them by a test."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    Identity,
    Index,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Table(DeclarativeBase):
    metadata = MetaData(naming_convention=_NAMES)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it once
        str: Text,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[str]: JSONB,
    }


class TenantRow(Table):
    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DeploymentRow(Table):
    __tablename__ = "deployments"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    body: Mapped[dict[str, Any]]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class AccessTokenRow(Table):
    """Bearer tokens; only the SHA-256 of the secret is kept."""

    __tablename__ = "access_tokens"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    role: Mapped[str]
    sha256: Mapped[str] = mapped_column(unique=True)
    single_use: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    user_id: Mapped[str | None] = mapped_column(index=True)
    label: Mapped[str | None]
    scopes: Mapped[list[str] | None]
    family: Mapped[str | None] = mapped_column(index=True)
    agent: Mapped[str | None]


class UserRow(Table):
    """People who may sign in; `email` is lower-case and names the person in the audit trail."""

    __tablename__ = "users"
    __table_args__ = (UniqueConstraint("tenant", "email"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    email: Mapped[str]
    name: Mapped[str]
    role: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    last_signed_in_at: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]


class IdentityRow(Table):
    """Who a user is at a provider; its `subject` never changes there, an address may."""

    __tablename__ = "identities"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    provider: Mapped[str] = mapped_column(primary_key=True)
    subject: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(index=True)
    linked_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class SignInRow(Table):
    """Sign-ins that a browser has begun at a provider and not yet come back from."""

    __tablename__ = "sign_ins"

    state_sha256: Mapped[str] = mapped_column(primary_key=True)
    browser_sha256: Mapped[str]
    tenant: Mapped[str]
    provider: Mapped[str]
    nonce: Mapped[str]
    verifier: Mapped[str]
    expires_at: Mapped[datetime]


class AgentRow(Table):
    __tablename__ = "agents"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    agent: Mapped[str] = mapped_column(primary_key=True)
    instance: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str]
    capabilities: Mapped[list[str]]
    status: Mapped[str]
    busy_with: Mapped[str | None]
    handled: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    failed: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    registered_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]


class EventRow(Table):
    """Append-only. `chain` is a change id, or `tenant-<id>` for what belongs to no change.

    `body` is kept as the very text that was hashed.
    """

    __tablename__ = "event_log"
    __table_args__ = (
        UniqueConstraint("chain", "version"),
        UniqueConstraint("event_id"),
        Index("ix_event_log_tenant_position", "tenant", "position"),
        Index(
            "ix_event_log_tenant_type_position",
            "tenant",
            "type",
            "position",
            postgresql_ops={"type": "text_pattern_ops"},
        ),
        Index("ix_event_log_at", "at", postgresql_using="brin"),
    )

    position: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    event_id: Mapped[str]
    tenant: Mapped[str]
    chain: Mapped[str]
    version: Mapped[int] = mapped_column(Integer)
    type: Mapped[str]
    subject: Mapped[str]
    source: Mapped[str]
    at: Mapped[datetime]
    said_at: Mapped[datetime]
    correlation: Mapped[str | None]
    causation: Mapped[str | None]
    body: Mapped[str]
    prev_hash: Mapped[str]
    hash: Mapped[str]


class ChainHeadRow(Table):
    """The last link of chains that belong to no change."""

    __tablename__ = "chain_heads"

    chain: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    hash: Mapped[str]


class SagaRow(Table):
    """The fold of a change's log, kept so that nobody has to fold it again."""

    __tablename__ = "sagas"
    __table_args__ = (
        Index("ix_sagas_tenant_state", "tenant", "state"),
        Index(
            "ix_sagas_open_deployment",
            "deployment",
            postgresql_where=text(
                "state IN ('deferred', 'voting', 'awaiting_approval', 'approved', 'executing',"
                " 'rolling_back')"
            ),
        ),
        Index("ix_sagas_tenant_updated_at", "tenant", "updated_at"),
        Index(
            "ix_sagas_tenant_moving_since",
            "tenant",
            "moving_since",
            postgresql_where=text("moving_since IS NOT NULL"),
        ),
    )

    change_id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    deployment: Mapped[str | None]
    state: Mapped[str]
    version: Mapped[int] = mapped_column(Integer)
    hash: Mapped[str]
    body: Mapped[str]
    moving_since: Mapped[datetime | None]
    opened_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class TimerRow(Table):
    """Timers that are set; `scheduled` once the broker holds a schedule of it, `nudged` when its
    time has come early."""

    __tablename__ = "timers"
    __table_args__ = (
        Index("ix_timers_fire_at", "fire_at"),
        Index("ix_timers_nudged", "change_id", postgresql_where=text("nudged")),
        Index("ix_timers_unscheduled", "set_at", postgresql_where=text("NOT scheduled")),
    )

    change_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str]
    tenant: Mapped[str]
    fire_at: Mapped[datetime]
    event_id: Mapped[str]
    set_at: Mapped[datetime]
    scheduled: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    nudged: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))


class InboxRow(Table):
    __tablename__ = "inbox"
    __table_args__ = (Index("ix_inbox_at", "at", postgresql_using="brin"),)

    consumer: Mapped[str] = mapped_column(primary_key=True)
    event_id: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class OutboxRow(Table):
    """What is to be published; `sent_seq` is the stream sequence of the broker's ack.

    `event` is empty for what the coordinator says: that stands in the log.
    """

    __tablename__ = "outbox"
    __table_args__ = (
        UniqueConstraint("event_id"),
        Index("ix_outbox_unsent", "id", postgresql_where=text("sent_seq IS NULL")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    event_id: Mapped[str]
    stream: Mapped[str]
    event: Mapped[str | None]
    traceparent: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    sent_seq: Mapped[int | None] = mapped_column(BigInteger)


class RecommendationRow(Table):
    __tablename__ = "recommendations"
    __table_args__ = (Index("ix_recommendations_tenant_proposed_at", "tenant", "proposed_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    deployment: Mapped[str]
    proposer: Mapped[str]
    kind: Mapped[str]
    risk: Mapped[str]
    version_hash: Mapped[str]
    body: Mapped[dict[str, Any]]
    proposed_at: Mapped[datetime]


class VoteRow(Table):
    __tablename__ = "votes"

    event_id: Mapped[str] = mapped_column(primary_key=True)
    change_id: Mapped[str] = mapped_column(index=True)
    agent: Mapped[str]
    round: Mapped[int] = mapped_column(Integer)
    verdict: Mapped[str]
    body: Mapped[dict[str, Any]]
    cast_at: Mapped[datetime]


class ApprovalRow(Table):
    __tablename__ = "approvals"
    __table_args__ = (
        Index("ix_approvals_policy_at", "at", postgresql_where=text("by_kind = 'policy'")),
    )

    event_id: Mapped[str] = mapped_column(primary_key=True)
    change_id: Mapped[str] = mapped_column(index=True)
    granted: Mapped[bool]
    by_kind: Mapped[str]
    by_name: Mapped[str]
    version_hash: Mapped[str]
    reason: Mapped[str]
    at: Mapped[datetime]


class ExecutionRow(Table):
    """Intents and results of steps: what makes a step happen at most once."""

    __tablename__ = "executions"

    change_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    stage: Mapped[int] = mapped_column(Integer, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    fence: Mapped[int] = mapped_column(Integer)
    captured: Mapped[dict[str, Any]]
    result: Mapped[dict[str, Any] | None]
    begun_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    finished_at: Mapped[datetime | None]


class OutcomeRow(Table):
    """The ledger of predicted against realised effect."""

    __tablename__ = "outcomes"
    __table_args__ = (Index("ix_outcomes_tenant_at", "tenant", "at"),)

    change_id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    kind: Mapped[str]
    body: Mapped[dict[str, Any]]
    at: Mapped[datetime]


class SwitchRow(Table):
    __tablename__ = "switches"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    stopped: Mapped[bool]
    by: Mapped[str]
    reason: Mapped[str]
    at: Mapped[datetime]


class PolicyRow(Table):
    """Every policy that was in force; the highest number of a tenant is. `body` is its JSON."""

    __tablename__ = "policies"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    version: Mapped[str]
    sha256: Mapped[str]
    body: Mapped[str]
    by: Mapped[str]
    written_at: Mapped[datetime]
    at: Mapped[datetime]


class DeadLetterRow(Table):
    """Dead letters that somebody has dealt with; the letters themselves lie on the broker."""

    __tablename__ = "dead_letters"

    letter: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    by: Mapped[str]
    reason: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class AuditRow(Table):
    """Who did or tried what; denials too."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_tenant_position", "tenant", "position"),)

    position: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    actor: Mapped[str]
    action: Mapped[str]
    target: Mapped[str]
    allowed: Mapped[bool]
    detail: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))

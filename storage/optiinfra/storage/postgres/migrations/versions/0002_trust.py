"""What trust needs: policies, dead letters, leaner delivery."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _deliver_leaner()
    _deal_with_letters()
    _keep_policies()


def _deliver_leaner() -> None:
    """The outbox points into the log; timers say whether the broker knows them."""
    op.alter_column("outbox", "event", nullable=True)
    op.add_column("outbox", sa.Column("traceparent", sa.Text(), nullable=True))
    op.drop_index("ix_outbox_created_at", "outbox")
    for table in ("inbox", "event_log"):
        op.drop_index(f"ix_{table}_at", table)
        op.create_index(f"ix_{table}_at", table, ["at"], postgresql_using="brin")
    op.create_index(
        "ix_sagas_open_deployment",
        "sagas",
        ["deployment"],
        postgresql_where=sa.text(
            "state IN ('deferred', 'voting', 'awaiting_approval', 'approved', 'executing',"
            " 'rolling_back')"
        ),
    )
    no = sa.text("false")
    op.add_column("timers", sa.Column("event_id", sa.Text(), nullable=True))
    op.add_column("timers", sa.Column("set_at", sa.DateTime(timezone=True), nullable=True))
    for name in ("scheduled", "nudged"):
        op.add_column("timers", sa.Column(name, sa.Boolean(), server_default=no, nullable=False))
    op.create_index("ix_timers_nudged", "timers", ["change_id"], postgresql_where=sa.text("nudged"))
    op.execute("UPDATE timers SET event_id = md5(change_id || name || key), set_at = now()")
    op.alter_column("timers", "event_id", nullable=False)
    op.alter_column("timers", "set_at", nullable=False)
    op.create_index(
        "ix_timers_unscheduled", "timers", ["set_at"], postgresql_where=sa.text("NOT scheduled")
    )


def _keep_policies() -> None:
    """Every policy that was ever in force, and an index for how often rules have approved."""
    op.create_table(
        "policies",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("written_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "number", name=op.f("pk_policies")),
    )
    op.create_index(
        "ix_approvals_policy_at",
        "approvals",
        ["at"],
        postgresql_where=sa.text("by_kind = 'policy'"),
    )


def _deal_with_letters() -> None:
    """What was done with dead letters."""
    now = sa.text("clock_timestamp()")
    op.create_table(
        "dead_letters",
        sa.Column("letter", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.PrimaryKeyConstraint("letter", name=op.f("pk_dead_letters")),
    )

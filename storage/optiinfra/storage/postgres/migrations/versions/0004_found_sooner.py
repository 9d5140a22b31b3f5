"""Outcomes by time, and events of a rare kind, without reading whole tables."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_outcomes_tenant_at", "outcomes", ["tenant", "at"])
    op.create_index(
        "ix_event_log_tenant_type_position",
        "event_log",
        ["tenant", "type", "position"],
        postgresql_ops={"type": "text_pattern_ops"},
    )

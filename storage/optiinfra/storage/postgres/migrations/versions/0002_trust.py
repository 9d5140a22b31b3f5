"""What trust needs: policies, dead letters, leaner delivery."""

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass

"""Quotas of a tenant that differ from the settings."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("tenants", sa.Column("quotas", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    """Every tenant has the quotas of the settings."""
    op.drop_column("tenants", "quotas")

"""When a dataset was last used, and an index by the end of jobs: what retention goes by."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Datasets that are there count as used when their last job was made, or they themselves."""
    op.add_column("datasets", sa.Column("used_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(
        "UPDATE datasets SET used_at = coalesce("
        "(SELECT max(jobs.created_at) FROM jobs WHERE jobs.dataset_id = datasets.id), created_at)"
    )
    with op.batch_alter_table("datasets") as table:
        table.alter_column("used_at", existing_type=sa.DateTime(timezone=True), nullable=False)
    op.create_index(op.f("ix_jobs_finished_at"), "jobs", ["finished_at"])


def downgrade() -> None:
    """Forget it."""
    op.drop_index(op.f("ix_jobs_finished_at"), "jobs")
    with op.batch_alter_table("datasets") as table:
        table.drop_column("used_at")

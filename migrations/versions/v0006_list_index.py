"""Lists of a dataset's jobs come from an index in their order, however many there are."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One index in place of the other: it serves what that one did."""
    op.create_index(op.f("ix_jobs_dataset_id_id"), "jobs", ["dataset_id", "id"])
    op.drop_index(op.f("ix_jobs_dataset_id"), "jobs")


def downgrade() -> None:
    """Back."""
    op.create_index(op.f("ix_jobs_dataset_id"), "jobs", ["dataset_id"])
    op.drop_index(op.f("ix_jobs_dataset_id_id"), "jobs")

"""Idempotency keys, webhooks, metadata and retries of jobs, datasets that can be deleted."""

import hashlib
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_NO_BYTES = hashlib.sha256(b"").hexdigest()


def upgrade() -> None:
    """Add what is missing; datasets that look alike get names of their own."""
    op.add_column("jobs", sa.Column("labels", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("jobs", sa.Column("retry_of", sa.String(length=40), nullable=True))
    op.add_column("jobs", sa.Column("webhook", sa.JSON(), nullable=True))
    op.create_index(op.f("ix_jobs_tenant_id_name_id"), "jobs", ["tenant_id", "name", "id"])

    # Of one content and name there may be one dataset from now on; the oldest keeps its name.
    op.execute(
        "UPDATE datasets SET name = substr(name, 1, 150) || ' (' || id || ')' WHERE EXISTS ("
        "SELECT 1 FROM datasets AS older WHERE older.tenant_id = datasets.tenant_id"
        " AND older.fingerprint = datasets.fingerprint AND older.name = datasets.name"
        " AND older.id < datasets.id)"
    )
    with op.batch_alter_table("datasets") as table:
        table.alter_column("fingerprint", existing_type=sa.String(length=64), nullable=True)
        table.create_unique_constraint(
            op.f("uq_datasets_tenant_id_fingerprint_name"), ["tenant_id", "fingerprint", "name"]
        )

    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("type", sa.String(length=40), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("http_status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "status IN ('pending', 'delivered', 'failed')",
            name=op.f("ck_webhook_deliveries_status"),
        ),
        sa.CheckConstraint(
            "(status = 'pending') = (next_attempt_at IS NOT NULL)",
            name=op.f("ck_webhook_deliveries_next_attempt"),
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_webhook_deliveries_job_id_jobs")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
    )
    op.create_index(op.f("ix_webhook_deliveries_job_id"), "webhook_deliveries", ["job_id"])
    op.create_index(
        op.f("ix_webhook_deliveries_next_attempt_at"), "webhook_deliveries", ["next_attempt_at"]
    )

    op.create_table(
        "idempotency_keys",
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("request_sha256", sa.String(length=64), nullable=False),
        sa.Column("token", sa.String(length=64), nullable=False),
        sa.Column("held_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("location", sa.String(length=200), nullable=True),
        sa.Column("body", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_idempotency_keys_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(op.f("ix_idempotency_keys_expires_at"), "idempotency_keys", ["expires_at"])


def downgrade() -> None:
    """Forget all of that. Deleted datasets come back empty: jobs refer to them."""
    op.drop_table("idempotency_keys")
    op.drop_table("webhook_deliveries")
    datasets = sa.table("datasets", sa.column("fingerprint", sa.String()))
    blobs = sa.table(
        "blobs",
        sa.column("sha256", sa.String()),
        sa.column("bytes", sa.BigInteger()),
        sa.column("complete", sa.Boolean()),
        sa.column("created_at", sa.DateTime(timezone=True)),
    )
    connection = op.get_bind()
    deleted = connection.scalar(sa.select(sa.func.count()).where(datasets.c.fingerprint.is_(None)))
    if deleted and not connection.scalar(
        sa.select(sa.func.count()).where(blobs.c.sha256 == _NO_BYTES)
    ):
        connection.execute(
            blobs.insert().values(
                sha256=_NO_BYTES, bytes=0, complete=True, created_at=datetime.now(UTC)
            )
        )
    connection.execute(
        datasets.update().where(datasets.c.fingerprint.is_(None)).values(fingerprint=_NO_BYTES)
    )
    with op.batch_alter_table("datasets") as table:
        table.drop_constraint(op.f("uq_datasets_tenant_id_fingerprint_name"), type_="unique")
        table.alter_column("fingerprint", existing_type=sa.String(length=64), nullable=False)
    op.drop_index(op.f("ix_jobs_tenant_id_name_id"), "jobs")
    for column in ("webhook", "retry_of", "labels"):
        op.drop_column("jobs", column)

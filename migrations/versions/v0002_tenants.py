"""Tenants: who owns a dataset and a job. What there was belongs to the default one."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_DEFAULT = "default"


def upgrade() -> None:
    """Add the table of tenants, and the owner of each row."""
    tenants = op.create_table(
        "tenants",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
    )
    op.bulk_insert(tenants, [{"id": _DEFAULT, "created_at": datetime.now(UTC)}])

    with op.batch_alter_table("datasets") as table:
        table.add_column(_owner())
        table.create_foreign_key(
            op.f("fk_datasets_tenant_id_tenants"), "tenants", ["tenant_id"], ["id"]
        )
        table.create_unique_constraint(op.f("uq_datasets_tenant_id_id"), ["tenant_id", "id"])
    with op.batch_alter_table("jobs", table_args=_checks()) as table:
        table.add_column(_owner())
        table.create_foreign_key(
            op.f("fk_jobs_tenant_id_tenants"), "tenants", ["tenant_id"], ["id"]
        )
        table.drop_constraint(op.f("fk_jobs_dataset_id_datasets"), type_="foreignkey")
        table.create_foreign_key(
            op.f("fk_jobs_tenant_id_dataset_id_datasets"),
            "datasets",
            ["tenant_id", "dataset_id"],
            ["tenant_id", "id"],
        )
        table.create_index(op.f("ix_jobs_tenant_id_id"), ["tenant_id", "id"])
        table.create_index(op.f("ix_jobs_tenant_id_status_id"), ["tenant_id", "status", "id"])
    # The default was for the rows that there were: from now on whoever adds one says whose it is.
    for name, checks in (("datasets", ()), ("jobs", _checks())):
        with op.batch_alter_table(name, table_args=checks) as table:
            table.alter_column("tenant_id", server_default=None)


def downgrade() -> None:
    """Forget whose rows they are: everything belongs to everybody again."""
    with op.batch_alter_table("jobs", table_args=_checks()) as table:
        table.drop_index(op.f("ix_jobs_tenant_id_status_id"))
        table.drop_index(op.f("ix_jobs_tenant_id_id"))
        table.drop_constraint(op.f("fk_jobs_tenant_id_dataset_id_datasets"), type_="foreignkey")
        table.drop_constraint(op.f("fk_jobs_tenant_id_tenants"), type_="foreignkey")
        table.create_foreign_key(
            op.f("fk_jobs_dataset_id_datasets"), "datasets", ["dataset_id"], ["id"]
        )
        table.drop_column("tenant_id")
    with op.batch_alter_table("datasets") as table:
        table.drop_constraint(op.f("uq_datasets_tenant_id_id"), type_="unique")
        table.drop_constraint(op.f("fk_datasets_tenant_id_tenants"), type_="foreignkey")
        table.drop_column("tenant_id")
    op.drop_table("tenants")


def _owner() -> sa.Column[str]:
    return sa.Column("tenant_id", sa.String(length=40), nullable=False, server_default=_DEFAULT)


def _checks() -> tuple[sa.CheckConstraint, ...]:
    """SQLite cannot change a table's keys in place, so the table is copied, which loses these."""
    return (
        sa.CheckConstraint(
            "(status IN ('running', 'cancelling')) = (lease_token IS NOT NULL)",
            name=op.f("ck_jobs_lease"),
        ),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_jobs_status"),
        ),
    )

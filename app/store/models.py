"""The tables, as SQLAlchemy models. Only app.store and app.blobs build statements with them."""

from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

JobStatus = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
TERMINAL: tuple[JobStatus, ...] = ("succeeded", "failed", "cancelled")
HELD: tuple[JobStatus, ...] = ("running", "cancelling")  # a worker has a lease on it

# Scopes of API keys; each includes the ones before it.
Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")

DeliveryStatus = Literal["pending", "delivered", "failed"]
DEFAULT_TENANT = "default"  # of requests without an API key

_Id = String(40)
_Sha256 = String(64)


class UtcDateTime(TypeDecorator[datetime]):
    """Timezone-aware UTC in Python on every database. SQLite stores no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC.

        Raises:
            ValueError: the time has no zone, so it is ambiguous.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without a zone: {value!r}")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002
    ) -> datetime | None:
        """Back to aware UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base of all tables: names of constraints, and columns of Python types."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    # JSON rather than JSONB: it keeps the order of keys, and accepts an escaped NUL in messages.
    type_annotation_map = {  # noqa: RUF012 - the form that SQLAlchemy requires
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(none_as_null=True),
        dict[str, str]: JSON(none_as_null=True),
    }


class Blob(Base):
    """Bytes named by their sha256. Readers see it once `complete` is true."""

    __tablename__ = "blobs"

    sha256: Mapped[str] = mapped_column(_Sha256, primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    complete: Mapped[bool]
    # Time of the last put; protects a young blob that nothing refers to yet from the sweep.
    created_at: Mapped[datetime] = mapped_column(index=True)


class BlobChunk(Base):
    """One piece of a blob."""

    __tablename__ = "blob_chunks"

    sha256: Mapped[str] = mapped_column(
        _Sha256, ForeignKey("blobs.sha256", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class Tenant(Base):
    """An owner of rows. Tenants do not see each other's rows, but may share blobs."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(_Id, primary_key=True)  # its name, from the operator
    created_at: Mapped[datetime]
    quotas: Mapped[dict[str, Any] | None]  # override those of the settings


class ApiKey(Base):
    """The right to act for a tenant. The key itself is not stored, only its digest."""

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint("scope IN ('read', 'write', 'admin')", name="scope"),
        Index(None, "tenant_id", "id"),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(_Id, ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(String(200))
    scope: Mapped[Scope] = mapped_column(String(10))
    digest: Mapped[str] = mapped_column(_Sha256)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]  # to within ten minutes


class Dataset(Base):
    """A normalised log."""

    __tablename__ = "datasets"
    __table_args__ = (
        # For a tenant's lists, and for the foreign key of jobs, which includes the tenant.
        UniqueConstraint("tenant_id", "id"),
        # The same interactions under the same name are one dataset.
        UniqueConstraint("tenant_id", "fingerprint", "name"),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(_Id, ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime]
    # Time of the upload, or of the last job on it; its age for retention.
    used_at: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC))
    # None: deleted. The row stays, because finished jobs refer to it.
    fingerprint: Mapped[str | None] = mapped_column(_Sha256, ForeignKey("blobs.sha256"), index=True)
    source_sha256: Mapped[str] = mapped_column(_Sha256)
    source_bytes: Mapped[int] = mapped_column(BigInteger)
    statistics: Mapped[dict[str, Any]]


class Job(Base):
    """A distillation: its request, its state, and the lease of its worker."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(
            "status IN ('queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')",
            name="status",
        ),
        # It has a lease if and only if a worker holds it.
        CheckConstraint(
            "(status IN ('running', 'cancelling')) = (lease_token IS NOT NULL)", name="lease"
        ),
        ForeignKeyConstraint(["tenant_id", "dataset_id"], ["datasets.tenant_id", "datasets.id"]),
        Index(None, "status", "id"),
        Index(None, "tenant_id", "id"),
        Index(None, "tenant_id", "status", "id"),
        Index(None, "dataset_id", "id"),
        Index(None, "tenant_id", "name", "id"),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(_Id, ForeignKey("tenants.id"))
    name: Mapped[str | None] = mapped_column(String(200))
    dataset_id: Mapped[str] = mapped_column(_Id)
    # The client's `metadata`, a name that SQLAlchemy reserves.
    labels: Mapped[dict[str, str]] = mapped_column(server_default="{}")
    # No foreign key: the job that this one repeats may be deleted.
    retry_of: Mapped[str | None] = mapped_column(_Id)
    preset: Mapped[str] = mapped_column(String(40))
    config: Mapped[dict[str, Any]]
    webhook: Mapped[dict[str, Any] | None]  # {"url", "secret"}
    status: Mapped[JobStatus] = mapped_column(String(20))
    phase: Mapped[str | None] = mapped_column(String(40))
    progress: Mapped[dict[str, Any] | None]
    metrics: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    attempt: Mapped[int]
    max_attempts: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None] = mapped_column(index=True)
    published_at: Mapped[datetime | None]
    lease_token: Mapped[str | None] = mapped_column(String(64))
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    checkpoint_sha256: Mapped[str | None] = mapped_column(
        _Sha256, ForeignKey("blobs.sha256"), index=True
    )
    # Number of events. Each event's UPDATE increments it; the row lock orders them.
    event_count: Mapped[int]
    # Of the request that created it; also in the workers' log.
    request_id: Mapped[str | None] = mapped_column(String(128))

    artifacts: Mapped[list["Artifact"]] = relationship(lazy="selectin", order_by="Artifact.name")


class JobEvent(Base):
    """An event of a job; `sequence` counts from 1 without gaps."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(_Id, ForeignKey("jobs.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]
    type: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]]


class Artifact(Base):
    """A file of a succeeded job."""

    __tablename__ = "artifacts"

    job_id: Mapped[str] = mapped_column(_Id, ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    media_type: Mapped[str] = mapped_column(String(100))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(_Sha256, ForeignKey("blobs.sha256"), index=True)


class WebhookDelivery(Base):
    """A message to a job's webhook, created in the transaction that ends the job."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("status IN ('pending', 'delivered', 'failed')", name="status"),
        # It has a next attempt if and only if it is pending.
        CheckConstraint(
            "(status = 'pending') = (next_attempt_at IS NOT NULL)", name="next_attempt"
        ),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    job_id: Mapped[str] = mapped_column(_Id, ForeignKey("jobs.id"), index=True)
    type: Mapped[str] = mapped_column(String(40))
    body: Mapped[str] = mapped_column(Text)  # exactly the text that is signed and sent
    status: Mapped[DeliveryStatus] = mapped_column(String(20))
    attempts: Mapped[int]
    created_at: Mapped[datetime]
    next_attempt_at: Mapped[datetime | None] = mapped_column(index=True)
    last_attempt_at: Mapped[datetime | None]
    http_status: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)


class IdempotencyKey(Base):
    """A request that must be done once, and its answer. No status: it is being served."""

    __tablename__ = "idempotency_keys"

    tenant_id: Mapped[str] = mapped_column(_Id, ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(_Sha256)
    token: Mapped[str] = mapped_column(String(64))
    held_until: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    status: Mapped[int | None]
    location: Mapped[str | None] = mapped_column(String(200))
    body: Mapped[str | None] = mapped_column(Text)

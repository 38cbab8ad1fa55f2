"""Quotas of tenants, and the check that a transaction stays within them.

The check runs in the transaction that uses the quota, while the tenant's row is locked: two
concurrent requests cannot both take the last place.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from app.settings import Settings
from app.store import tenants

_Limit = Annotated[int, Field(ge=0)]
QuotaCode = Literal["storage_full", "too_many_active_jobs", "too_many_jobs"]


class QuotaExceededError(Exception):
    """The tenant has used up a quota.

    Args:
        code: which quota; the same as the code of the HTTP problem.
        detail: current use and limit, for people.
    """

    def __init__(self, code: QuotaCode, detail: str) -> None:
        super().__init__(code, detail)
        self.code: QuotaCode = code
        self.detail = detail


class Quotas(BaseModel):
    """Limits of one tenant. The defaults only stop runaway scripts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stored_bytes: _Limit = Field(
        default=100 * 1024**3,
        description="Bytes of its datasets, artifacts and checkpoints, counted for each that has "
        "them.",
    )
    active_jobs: _Limit = Field(default=10_000, description="Jobs that are not over.")
    kept_jobs: Annotated[_Limit, Field(le=10**12)] = Field(  # the database counts up to it
        default=1_000_000, description="Jobs in all, those that are over and not deleted as well."
    )
    upload_bytes: _Limit = Field(
        default=2 * 1024**3,
        description="Size of one uploaded file; also `TD3_MAX_UPLOAD_BYTES`. 0: no uploads.",
    )
    rows: _Limit = Field(
        default=50_000_000,
        description="Interactions of one uploaded file; also `max_rows` of `TD3_UPLOAD_LIMITS`. "
        "0: no uploads.",
    )
    requests_per_minute: Annotated[int, Field(gt=0)] = Field(
        default=6_000, description="Requests with its keys, in any 60 seconds."
    )


def quotas_for(settings: Settings, overrides: dict[str, Any] | None) -> Quotas:
    """Defaults, overridden by the settings, overridden by the tenant's own quotas.

    Raises:
        pydantic.ValidationError: an unknown name, or a value that is no number.
    """
    return Quotas.model_validate({**settings.quotas, **(overrides or {})})


def find_quotas(session: Session, settings: Settings, tenant_id: str) -> Quotas:
    """The quotas of this tenant."""
    return quotas_for(settings, tenants.overrides(session, tenant_id))


def take_job(session: Session, settings: Settings, tenant_id: str) -> None:
    """Lock the tenant and check that it may have one more job, which this transaction creates.

    Raises:
        QuotaExceededError: `too_many_active_jobs` or `too_many_jobs`.
    """
    quotas = quotas_for(settings, tenants.lock(session, tenant_id))
    active = tenants.active_jobs(session, tenant_id)
    if active >= quotas.active_jobs:
        raise QuotaExceededError(
            "too_many_active_jobs",
            f"{active} jobs are not over yet, and {quotas.active_jobs} are allowed.",
        )
    if not tenants.has_fewer_jobs(session, tenant_id, quotas.kept_jobs):
        raise QuotaExceededError(
            "too_many_jobs", f"{quotas.kept_jobs} jobs are allowed: delete some that are over."
        )


def take_bytes(session: Session, settings: Settings, tenant_id: str, size: int) -> None:
    """Lock the tenant and check that it may store `size` more bytes, which this transaction adds.

    Raises:
        QuotaExceededError: `storage_full`.
    """
    quotas = quotas_for(settings, tenants.lock(session, tenant_id))
    _check_storage(session, quotas, tenant_id, size)


def require_storage(session: Session, settings: Settings, tenant_id: str) -> Quotas:
    """The tenant's quotas, if it may store at least one more byte.

    For a check before expensive work. It takes no lock, because adding up the bytes of many jobs
    takes a while, and what a job will store is unknown when it is created.

    Raises:
        QuotaExceededError: `storage_full`.
    """
    quotas = find_quotas(session, settings, tenant_id)
    _check_storage(session, quotas, tenant_id, size=1)
    return quotas


def _check_storage(session: Session, quotas: Quotas, tenant_id: str, size: int) -> None:
    stored = tenants.stored_bytes(session, tenant_id)
    if stored + size > quotas.stored_bytes:
        raise QuotaExceededError(
            "storage_full", f"{stored} bytes are stored, and {quotas.stored_bytes} are allowed."
        )

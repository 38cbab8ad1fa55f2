"""What a tenant may use at most, and the refusals of what would be more.

Whether there is room is decided in the transaction that takes it, while the tenant's row is locked:
two requests at once cannot both take the last place.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from app.http.problems import ApiError, ServiceCode
from app.settings import Settings
from app.store import tenants

_Limit = Annotated[int, Field(ge=0)]
_RETRY_SECONDS = {"too_many_active_jobs": 30, "too_many_jobs": 600, "storage_full": 600}


class Quotas(BaseModel):
    """Limits of one tenant. The defaults are against scripts that run away."""

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
    """The defaults, what the settings say, and what was said for the tenant.

    Raises:
        pydantic.ValidationError: an unknown name, or no number.
    """
    return Quotas.model_validate({**settings.quotas, **(overrides or {})})


def find_quotas(session: Session, settings: Settings, tenant_id: str) -> Quotas:
    """What this tenant may use."""
    return quotas_for(settings, tenants.overrides(session, tenant_id))


def take_job(session: Session, settings: Settings, tenant_id: str) -> None:
    """Hold the tenant until the transaction ends, in which one more job is made.

    Raises:
        ApiError: 429 `too_many_active_jobs`, `too_many_jobs`.
    """
    quotas = quotas_for(settings, tenants.lock(session, tenant_id))
    active = tenants.active_jobs(session, tenant_id)
    if active >= quotas.active_jobs:
        raise _exceeded(
            "too_many_active_jobs",
            f"{active} jobs are not over yet, and {quotas.active_jobs} are allowed.",
        )
    if not tenants.has_fewer_jobs(session, tenant_id, quotas.kept_jobs):
        raise _exceeded(
            "too_many_jobs", f"{quotas.kept_jobs} jobs are allowed: delete some that are over."
        )


def take_bytes(session: Session, settings: Settings, tenant_id: str, more: int) -> None:
    """Hold the tenant until the transaction ends, in which so many bytes more are referred to.

    Raises:
        ApiError: 429 `storage_full`.
    """
    _see_room(session, quotas_for(settings, tenants.lock(session, tenant_id)), tenant_id, more)


def see_room(session: Session, settings: Settings, tenant_id: str) -> Quotas:
    """The tenant's quotas, before anything is begun that could not be kept anyway.

    Without holding the tenant: what a job will store is not known when it is made, and adding up
    the bytes of many jobs takes a while.

    Raises:
        ApiError: 429 `storage_full`.
    """
    quotas = find_quotas(session, settings, tenant_id)
    _see_room(session, quotas, tenant_id, more=1)
    return quotas


def _see_room(session: Session, quotas: Quotas, tenant_id: str, more: int) -> None:
    stored = tenants.stored_bytes(session, tenant_id)
    if stored + more > quotas.stored_bytes:
        raise _exceeded(
            "storage_full", f"{stored} bytes are stored, and {quotas.stored_bytes} are allowed."
        )


def _exceeded(code: ServiceCode, detail: str) -> ApiError:
    return ApiError(429, code, detail, headers={"Retry-After": str(_RETRY_SECONDS[code])})

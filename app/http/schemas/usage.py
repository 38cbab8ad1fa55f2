"""Models of usage and quotas."""

from pydantic import BaseModel, Field

from app.store.models import JobStatus
from app.store.quotas import Quotas


class Usage(BaseModel):
    """The use and the quotas of the caller's tenant."""

    tenant: str
    datasets: int
    jobs: dict[JobStatus, int] = Field(description="Jobs by status; those that there are.")
    active_jobs: int = Field(description="Jobs that are not over.")
    kept_jobs: int = Field(description="Jobs in all: the sum of `jobs`.")
    stored_bytes: int = Field(
        description="Bytes of its datasets, artifacts and checkpoints, counted for each that has "
        "them."
    )
    quotas: Quotas

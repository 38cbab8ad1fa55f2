"""Jobs on the wire."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.schemas.common import Name, RequestModel
from app.store.models import JobStatus
from td3engine.config import Preset


class JobSettings(RequestModel):
    """What to do with a log: field `request` of a multipart `POST /jobs`."""

    preset: Preset = "balanced"
    config: dict[str, Any] = Field(
        default={},
        description="Part of a `DistillConfig`, laid over the preset.",
        examples=[{"outer": {"window": 20}, "seed": 1}],
    )
    name: Name | None = None


class JobRequest(JobSettings):
    """Body of `POST /jobs`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "dataset_id": "ds_01jd2v0z6w8k3m5n7p9q",
                "preset": "fast",
                "config": {"summary": {"users": 20}, "seed": 1},
            }
        }
    )

    dataset_id: str = Field(max_length=100)


class Progress(BaseModel):
    """How far the job is, as last heard."""

    phase: str | None = None
    step: int | None = None
    total: int | None = None
    seconds_left: float | None = Field(default=None, description="An estimate.")
    metrics: dict[str, Any] = Field(default={}, description="Best on validation so far.")


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class Artifact(BaseModel):
    """A file that a job made."""

    name: str = Field(examples=["summary.safetensors"])
    media_type: str
    bytes: int
    sha256: str
    href: str = Field(description="Where to download it.")


class Job(BaseModel):
    """A distillation."""

    id: str = Field(examples=["job_01jd2v3k8r4t6w9x2y5z"])
    name: str | None
    dataset_id: str
    preset: str
    # Not validated again: a newer release must show the jobs of an older one as they were.
    config: dict[str, Any] = Field(description="The full `DistillConfig`.")
    status: JobStatus
    phase: str | None = Field(
        description="preparing, pretraining, distilling, evaluating or publishing."
    )
    progress: Progress | None
    metrics: dict[str, Any] | None = Field(description="Final figures, once succeeded.")
    error: JobError | None
    attempt: int = Field(description="Starts so far; a crash is retried up to `max_attempts`.")
    max_attempts: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    artifacts: list[Artifact]


class JobEvent(BaseModel):
    """Something that happened to a job; `sequence` counts from 1 without gaps."""

    sequence: int
    type: str
    created_at: datetime
    data: dict[str, Any]

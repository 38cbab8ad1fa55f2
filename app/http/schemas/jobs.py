"""Models of jobs."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from app.http.schemas.common import Name, RequestModel
from app.store.models import DeliveryStatus, JobStatus
from app.webhook_rules import check_secret
from td3engine.config import Preset

MOST_METADATA = 32
_MetadataKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")]
_MetadataValue = Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]


def _valid_secret(secret: str) -> str:
    check_secret(secret)
    return secret


class Webhook(RequestModel):
    """Gets a message when the job is over (Standard Webhooks): a POST, signed with the secret."""

    url: str = Field(
        max_length=2000,
        description="https; where it leads must be a public address.",
        examples=["https://example.com/hooks/td3"],
    )
    secret: Annotated[str, AfterValidator(_valid_secret)] = Field(
        max_length=200,
        repr=False,
        description="`whsec_` and base64 of 24 to 64 random bytes. Never shown again.",
        examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )


class JobSettings(RequestModel):
    """What to do with a log: field `request` of a multipart `POST /jobs`."""

    preset: Preset = "balanced"
    config: dict[str, Any] = Field(
        default={},
        description="Part of a `DistillConfig`, laid over the preset.",
        examples=[{"outer": {"window": 20}, "seed": 1}],
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        default=None, description="Short for `config.seed`."
    )
    name: Name | None = None
    metadata: Annotated[dict[_MetadataKey, _MetadataValue], Field(max_length=MOST_METADATA)] = (
        Field(
            default={},
            description="Your own labels; stored unchanged.",
            examples=[{"team": "search", "commit": "4f2a9c1"}],
        )
    )
    webhook: Webhook | None = None


class JobRequest(JobSettings):
    """Body of `POST /jobs`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "dataset_id": "ds_01jd2v0z6w8k3m5n7p9q",
                "preset": "fast",
                "config": {"summary": {"users": 20}},
                "seed": 1,
                "name": "nightly",
                "metadata": {"team": "search"},
            }
        }
    )

    dataset_id: str = Field(max_length=100)


class Progress(BaseModel):
    """The job's latest progress."""

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
    """A file of a succeeded job."""

    name: str = Field(examples=["summary.safetensors"])
    media_type: str
    bytes: int
    sha256: str
    href: str = Field(description="Where to download it.")


class WebhookTarget(BaseModel):
    """Gets a message when the job is over. Deliveries: `GET /jobs/{id}/deliveries`."""

    url: str


class WebhookDelivery(BaseModel):
    """A message to the job's webhook."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(
        description="Header `webhook-id`: the same at each attempt.",
        examples=["msg_01jd2v9m4n8q6s3t7w2x"],
    )
    type: str = Field(examples=["job.succeeded"])
    status: DeliveryStatus
    attempts: int
    created_at: datetime
    next_attempt_at: datetime | None
    last_attempt_at: datetime | None
    http_status: int | None = Field(description="Status of the receiver's last answer, if any.")
    error: str | None = Field(description="Why the last attempt failed.")


class MetricsPoint(BaseModel):
    """A job's progress and metrics at one time."""

    sequence: int = Field(description="Of the progress event that it comes from.")
    created_at: datetime
    phase: str
    step: int
    total: int
    metrics: dict[str, Any] = Field(
        default={}, description="Best on validation until then.", examples=[{"ndcg@10": 0.0841}]
    )


class Job(BaseModel):
    """A distillation."""

    id: str = Field(examples=["job_01jd2v3k8r4t6w9x2y5z"])
    name: str | None
    metadata: dict[str, str]
    dataset_id: str
    retry_of: str | None = Field(description="The job that this one repeats.")
    preset: str
    seed: int | None = Field(description="`config.seed`.")
    # Not a DistillConfig: a newer release must show the jobs of an older one unchanged.
    config: dict[str, Any] = Field(description="The full `DistillConfig`.")
    webhook: WebhookTarget | None
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
    """An event of a job; `sequence` counts from 1 without gaps."""

    sequence: int
    type: str
    created_at: datetime
    data: dict[str, Any]

"""Models of the service's answers, as the client reads them.

Unknown fields, which a newer service may send, are ignored.
"""

from datetime import datetime
from typing import Any

from pydantic import BaseModel

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})


class Problem(BaseModel):
    """Why the service refused a request (RFC 9457)."""

    status: int
    title: str = ""
    detail: str = ""
    code: str = "unknown"
    request_id: str | None = None
    param: str | None = None
    errors: list[dict[str, Any]] | None = None
    line: int | None = None
    column: str | None = None


class ServiceError(Exception):
    """The service refused or failed a request; `problem` says why.

    Attributes:
        problem: why.
        retry_after: seconds after which the service wants to be asked again; 0: it names none.
    """

    def __init__(self, problem: Problem, retry_after: float = 0.0) -> None:
        super().__init__(f"{problem.detail or problem.title} ({problem.code})")
        self.problem = problem
        self.retry_after = retry_after


class UnexpectedAnswerError(ServiceError):
    """The answer is not the service's: a proxy's error or login page, or that of another server.

    `problem` has its status, and what it says.
    """


class DownloadError(Exception):
    """The downloaded bytes are not those that the job made."""


class Dataset(BaseModel):
    """An uploaded log."""

    id: str
    name: str
    created_at: datetime
    fingerprint: str
    source_sha256: str
    source_bytes: int
    statistics: dict[str, Any]


class Artifact(BaseModel):
    """A file that a job made."""

    name: str
    media_type: str
    bytes: int
    sha256: str
    href: str


class Job(BaseModel):
    """A distillation."""

    id: str
    name: str | None
    metadata: dict[str, str]
    dataset_id: str
    retry_of: str | None
    preset: str
    seed: int
    config: dict[str, Any]
    status: str
    phase: str | None
    progress: dict[str, Any] | None
    metrics: dict[str, Any] | None
    error: dict[str, Any] | None
    attempt: int
    max_attempts: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    artifacts: list[Artifact]

    @property
    def is_over(self) -> bool:
        """Whether it has succeeded, failed or was cancelled."""
        return self.status in TERMINAL


class MetricsPoint(BaseModel):
    """How far a job was at a time, and how good."""

    sequence: int
    created_at: datetime
    phase: str
    step: int
    total: int
    metrics: dict[str, Any]


class Event(BaseModel):
    """Something that happened to a job."""

    sequence: int
    type: str
    created_at: datetime
    data: dict[str, Any]

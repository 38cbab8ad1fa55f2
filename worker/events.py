"""What the engine says on stdout: JSON lines (docs/contracts.md, section 1)."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

_Phase = Annotated[str, Field(min_length=1, max_length=40)]
_Count = Annotated[int, Field(ge=0)]


class PhaseEvent(BaseModel):
    """A new part of the work began."""

    event: Literal["phase"]
    phase: _Phase


class ProgressEvent(BaseModel):
    """How far it is."""

    event: Literal["progress"]
    phase: _Phase
    step: _Count
    total: _Count
    seconds_left: float | None = None
    metrics: dict[str, Any] = {}


class CheckpointEvent(BaseModel):
    """A file from which the work can go on is complete."""

    event: Literal["checkpoint"]
    path: str
    phase: _Phase
    step: _Count


class LogEvent(BaseModel):
    """Something that a user should read."""

    event: Literal["log"]
    level: Annotated[str, Field(max_length=20)]
    message: str


class ArtifactFile(BaseModel):
    """A file that belongs to the result."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]
    path: str
    media_type: Annotated[str, Field(max_length=100)]


class ResultEvent(BaseModel):
    """Last line of a success."""

    event: Literal["result"]
    artifacts: list[ArtifactFile]
    metrics: dict[str, Any]


class ErrorEvent(BaseModel):
    """Last line of a failure that the engine understands."""

    event: Literal["error"]
    code: Annotated[str, Field(max_length=100)]
    message: str


EngineEvent = PhaseEvent | ProgressEvent | CheckpointEvent | LogEvent | ResultEvent | ErrorEvent
_EVENT: TypeAdapter[EngineEvent] = TypeAdapter(Annotated[EngineEvent, Field(discriminator="event")])


def parse_event(line: bytes) -> EngineEvent | None:
    """The event on a line, or None when it is something else (a library's chatter on stdout)."""
    try:
        # NaN and infinities are not JSON, and PostgreSQL takes none: they become null.
        return _EVENT.validate_python(json.loads(line, parse_constant=lambda _: None))
    except (ValueError, RecursionError, ValidationError):
        return None

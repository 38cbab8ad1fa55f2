"""The engine's events: JSON lines on its stdout (docs/contracts.md, section 1)."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

_Phase = Annotated[str, Field(min_length=1, max_length=40)]
_Count = Annotated[int, Field(ge=0)]


class PhaseEvent(BaseModel):
    """A new phase of the work began."""

    event: Literal["phase"]
    phase: _Phase


class ProgressEvent(BaseModel):
    """The progress within a phase."""

    event: Literal["progress"]
    phase: _Phase
    step: _Count
    total: _Count
    seconds_left: float | None = None
    metrics: dict[str, Any] = {}


class CheckpointEvent(BaseModel):
    """A checkpoint file is complete."""

    event: Literal["checkpoint"]
    path: str
    phase: _Phase
    step: _Count


class LogEvent(BaseModel):
    """A message for the user."""

    event: Literal["log"]
    level: Annotated[str, Field(max_length=20)]
    message: str


class ArtifactFile(BaseModel):
    """A file of the result."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]
    path: str
    media_type: Annotated[str, Field(max_length=100)]


class ResultEvent(BaseModel):
    """The last event of a success."""

    event: Literal["result"]
    artifacts: list[ArtifactFile]
    metrics: dict[str, Any]


class ErrorEvent(BaseModel):
    """The last event of a failure that the engine understands."""

    event: Literal["error"]
    code: Annotated[str, Field(max_length=100)]
    message: str


EngineEvent = PhaseEvent | ProgressEvent | CheckpointEvent | LogEvent | ResultEvent | ErrorEvent
_EVENT: TypeAdapter[EngineEvent] = TypeAdapter(Annotated[EngineEvent, Field(discriminator="event")])


def parse_event(line: bytes) -> EngineEvent | None:
    """The event on a line, or None for other output, for example a library's."""
    try:
        # NaN and infinities become null: they are no JSON, and PostgreSQL refuses them.
        return _EVENT.validate_python(json.loads(line, parse_constant=lambda _: None))
    except (ValueError, RecursionError, ValidationError):
        return None

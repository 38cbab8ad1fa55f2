"""The events of a run, shared by engine, command line and worker. Imports no torch.

Within a process, a listener is called with event objects. Between processes an event is one line of
JSON, whose field `event` is its type (docs/contracts.md).
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

Phase = Literal["preparing", "pretraining", "distilling", "evaluating"]
PhaseName = Annotated[str, Field(min_length=1, max_length=40)]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class PhaseStarted:
    """A new phase of the run has begun."""

    phase: PhaseName
    event: Literal["phase"] = "phase"


@dataclass(frozen=True)
class Progress:
    """Progress within a phase.

    Attributes:
        phase: the running phase.
        step: steps completed.
        total: steps of the phase.
        seconds_left: estimated wall time to the end of the phase; None if unknown.
        metrics: the best validation metrics so far, by name.
    """

    phase: PhaseName
    step: Count
    total: Count
    seconds_left: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    event: Literal["progress"] = "progress"


@dataclass(frozen=True)
class Note:
    """A message for the user."""

    message: str
    level: Annotated[str, Field(max_length=20)] = "warning"
    event: Literal["log"] = "log"


@dataclass(frozen=True)
class CheckpointWritten:
    """A checkpoint, from which the run can be resumed, is complete on disk."""

    path: str
    phase: PhaseName
    step: Count
    event: Literal["checkpoint"] = "checkpoint"


@dataclass(frozen=True)
class ArtifactFile:
    """A file of the result."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]
    path: str
    media_type: Annotated[str, Field(max_length=100)]


@dataclass(frozen=True)
class RunSucceeded:
    """The run succeeded. The last event."""

    artifacts: list[ArtifactFile]
    metrics: dict[str, Any]
    event: Literal["result"] = "result"


@dataclass(frozen=True)
class RunRefused:
    """The input cannot be used (`UnusableError`). The last event."""

    code: Annotated[str, Field(max_length=100)]
    message: str
    event: Literal["error"] = "error"


Event = PhaseStarted | Progress | Note
"""The events that a listener is called with."""

EngineEvent = Event | CheckpointWritten | RunSucceeded | RunRefused
"""The events that the engine's process prints."""

Listener = Callable[[Event], None]

_ADAPTER: TypeAdapter[EngineEvent] = TypeAdapter(
    Annotated[EngineEvent, Field(discriminator="event")]
)


def to_line(event: EngineEvent) -> str:
    """The event as one line of JSON, without a line end. NaN becomes null."""
    return _ADAPTER.dump_json(event).decode()


def parse_event(line: bytes) -> EngineEvent | None:
    """The event on a line; None if the line is something else, such as a library's output."""
    try:
        # NaN and infinities are not JSON, and PostgreSQL takes none: they become null.
        content = json.loads(line, parse_constant=lambda _: None, parse_float=_finite)
        return _ADAPTER.validate_python(content)
    except (ValueError, RecursionError, ValidationError):
        return None


def _finite(number: str) -> float | None:
    """The number, or None where it is beyond a float's range (1e999)."""
    value = float(number)
    return value if math.isfinite(value) else None


def throttled(listener: Listener, every_seconds: float = 1.0) -> Listener:
    """A listener that forwards at most one progress event in `every_seconds`, and all other events.

    The last progress event before another event is always forwarded: the progress of a phase ends
    where the phase does, also when early stopping ends a teacher.
    """
    last = -every_seconds
    pending: Progress | None = None

    def listen(event: Event) -> None:
        nonlocal last, pending
        now = time.monotonic()
        if isinstance(event, Progress):
            if event.step < event.total and now - last < every_seconds:
                pending = event
                return
            last = now
        else:
            if pending is not None:
                listener(pending)
            last = -every_seconds
        pending = None
        listener(event)

    return listen

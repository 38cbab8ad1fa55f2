"""What a run tells whoever watches it, defined once for engine, command line and worker.

Imports no torch. Inside a process a listener is called with the events themselves. Between
processes each is a line of JSON whose field `event` names its type (docs/contracts.md).
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
    """A new part of the work has begun."""

    phase: PhaseName
    event: Literal["phase"] = "phase"


@dataclass(frozen=True)
class Progress:
    """How far a phase is.

    Attributes:
        phase: the phase.
        step, total: steps done, and in all.
        seconds_left: an estimate; None where it is not known.
        metrics: the best validation figures so far.
    """

    phase: PhaseName
    step: Count
    total: Count
    seconds_left: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    event: Literal["progress"] = "progress"


@dataclass(frozen=True)
class Note:
    """Something that a user should read."""

    message: str
    level: Annotated[str, Field(max_length=20)] = "warning"
    event: Literal["log"] = "log"


@dataclass(frozen=True)
class CheckpointWritten:
    """A file from which the work can go on is complete on disk."""

    path: str
    phase: PhaseName
    step: Count
    event: Literal["checkpoint"] = "checkpoint"


@dataclass(frozen=True)
class ArtifactFile:
    """A file that belongs to the result."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]
    path: str
    media_type: Annotated[str, Field(max_length=100)]


@dataclass(frozen=True)
class RunSucceeded:
    """The last line of a success."""

    artifacts: list[ArtifactFile]
    metrics: dict[str, Any]
    event: Literal["result"] = "result"


@dataclass(frozen=True)
class RunRefused:
    """The last line of a failure that the engine understands."""

    code: Annotated[str, Field(max_length=100)]
    message: str
    event: Literal["error"] = "error"


Event = PhaseStarted | Progress | Note
"""What a listener is called with."""

EngineEvent = Event | CheckpointWritten | RunSucceeded | RunRefused
"""What the engine's process prints."""

Listener = Callable[[Event], None]

_ADAPTER: TypeAdapter[EngineEvent] = TypeAdapter(
    Annotated[EngineEvent, Field(discriminator="event")]
)


def to_line(event: EngineEvent) -> str:
    """The event as one line of JSON, without its line end. Not-a-number becomes null."""
    return _ADAPTER.dump_json(event).decode()


def parse_event(line: bytes) -> EngineEvent | None:
    """The event on a line, or None where the line is something else (a library's output)."""
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
    """A listener that passes on at most one progress event in so many seconds, and all others.

    The last progress before another event always passes, so what is shown of a phase ends where the
    phase did: early stopping may end a teacher at any epoch.
    """
    last = -every_seconds
    held: Progress | None = None

    def listen(event: Event) -> None:
        nonlocal last, held
        now = time.monotonic()
        if isinstance(event, Progress):
            if event.step < event.total and now - last < every_seconds:
                held = event
                return
            last = now
        else:
            if held is not None:
                listener(held)
            last = -every_seconds
        held = None
        listener(event)

    return listen

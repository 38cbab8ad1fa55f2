"""What a run tells whoever watches it: the command line's progress bar, or the worker."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["preparing", "pretraining", "distilling", "evaluating"]


@dataclass(frozen=True)
class PhaseStarted:
    phase: Phase


@dataclass(frozen=True)
class Progress:
    """How far a phase is; `metrics` holds the best validation figures so far."""

    phase: Phase
    step: int
    total: int
    seconds_left: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Note:
    """Something a user should read."""

    message: str


Event = PhaseStarted | Progress | Note
Listener = Callable[[Event], None]

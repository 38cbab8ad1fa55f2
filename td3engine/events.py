"""What a run tells whoever watches it: the command line's progress bar, or the worker."""

import time
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


def throttled(listener: Listener, every_seconds: float = 1.0) -> Listener:
    """A listener that passes on at most one progress event in so many seconds, and all others.

    The last progress before another event always passes, so that what is shown of a phase ends
    where the phase did (a teacher's may be any epoch).
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

"""Faults one after another and on top of each other, while clients go on asking for jobs."""

import heapq
import itertools
import logging
import random
import signal
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from app.errors import StorageUnavailableError
from tests.faults.arena import Arena
from tests.faults.injections import FAULTS, OVER, POINT_SECONDS, POINTS, Fault, PointFault, Undo
from tests.faults.verdict import Row

SETTLE_SECONDS = 240.0  # for all jobs to end once the faults are over
TRIES = 4  # of a fault that finds nothing to strike
VICTIM_SECONDS = 120.0  # for a job to be there that a fault can strike
LOOK_SECONDS = 0.1
ALONE = 0.4  # share of faults that are over before the next one
PAUSE_SECONDS = (0.0, 0.6)
REAL_PAUSE_SECONDS = (3.0, 12.0)
ORPHAN_SECONDS = 10.0  # for the kernel and the workers to end engines

logger = logging.getLogger(__name__)

T = TypeVar("T")
Kind = Fault | PointFault


def draw(database: str, count: int, rng: random.Random) -> list[Kind]:
    """So many faults that can strike a service on this database, each kind about as often."""
    kinds = [kind for kind in (*FAULTS, *POINTS) if kind.database in ("any", database)]
    deck: list[Kind] = []
    while len(deck) < count:
        deck += rng.sample(kinds, len(kinds))
    return deck[:count]


class Chaos:
    """A run: what is yet to come, what is to be undone when, and what has happened."""

    def __init__(self, arena: Arena, seed: int) -> None:
        self.rows: dict[str, Row] = {}
        self._arena = arena
        self._rng = random.Random(seed)
        self._undos: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()

    @property
    def injected(self) -> int:
        """Faults so far."""
        return sum(row.injected for row in self.rows.values())

    def strike(self, deck: Sequence[Kind]) -> None:
        """One fault after another, with jobs in flight."""
        for kind in deck:
            for _ in range(TRIES):
                unfinished = self._wait(self._victims, VICTIM_SECONDS)
                undo = self._inject(kind) if unfinished else None
                if unfinished and undo:
                    break
                self._pause(0.5)
            else:
                logger.info("nothing to strike: %s", kind.name)
                continue
            logger.info("%d. %s (%d jobs)", self.injected + 1, kind.name, len(unfinished))
            row = self.rows.setdefault(kind.name, Row())
            row.injected += 1
            row.jobs |= set(unfinished)
            self._undo_later(undo)
            if self._rng.random() < ALONE:  # else the next one comes on top
                self._wait(lambda: not self._undos, 10)
            real = self._arena.real_engine  # its jobs take longer, and some shall succeed
            self._pause(self._rng.uniform(*(REAL_PAUSE_SECONDS if real else PAUSE_SECONDS)))
            row.orphans += len(self._left_alone())

    def configure(self) -> None:
        """Undo everything, and wait until all jobs are over."""
        self._wait(lambda: not self._undos, 30)
        logger.info("settling: %d jobs", len(self._arena.unfinished()))
        self._wait(lambda: not self._arena.unfinished(), SETTLE_SECONDS)
        self._arena.revive()

    def _inject(self, kind: Kind) -> Undo | None:
        if isinstance(kind, Fault):
            return kind.inject(self._arena, self._rng)
        self._arena.arm(kind.point, kind.action)
        if kind.trigger is not None:
            kind.trigger(self._arena, self._rng)
        pid = self._wait(lambda: self._arena.fired(kind.point), POINT_SECONDS)
        if pid is None:
            self._arena.disarm(kind.point)
            pid = self._arena.fired(kind.point)
        if pid is None:
            return None
        if kind.action == "SIGKILL":
            return OVER
        stopped = pid
        seconds = self._rng.uniform(*kind.hold)
        return Undo(seconds, lambda: self._arena.signal(stopped, signal.SIGCONT))

    def _victims(self) -> list[str]:
        """Jobs that are not over, once there are some (of the real engine: one to resume)."""
        unfinished = self._arena.unfinished()
        return unfinished if not self._arena.real_engine or self._arena.resumable() else []

    def _pause(self, seconds: float) -> None:
        self._wait(lambda: None, seconds)

    def _undo_later(self, undo: Undo) -> None:
        due = time.monotonic() + undo.seconds
        heapq.heappush(self._undos, (due, next(self._count), undo.call))

    def _tick(self) -> None:
        """Undo what is due, start what has ended."""
        while self._undos and self._undos[0][0] <= time.monotonic():
            heapq.heappop(self._undos)[2]()
        self._arena.revive()

    def _wait(self, look: Callable[[], T], seconds: float) -> T | None:
        """What `look` returns once it is true; None when it is not for so long."""
        deadline = time.monotonic() + seconds
        while True:
            self._tick()
            try:
                if found := look():
                    return found
            except StorageUnavailableError:
                pass  # this process looks at the database, too, while it is locked
            if time.monotonic() > deadline:
                return None
            time.sleep(LOOK_SECONDS)

    def _left_alone(self) -> set[int]:
        """Engines that live on without their worker."""
        deadline = time.monotonic() + ORPHAN_SECONDS
        while (orphans := self._arena.orphans()) and time.monotonic() < deadline:
            self._pause(0.1)
        return orphans

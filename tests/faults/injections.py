"""What is done to the service: the faults, each by its name in the table.

A fault is injected into an arena; it returns what undoes it and after how many seconds, or None
when there is nothing to do it to at the moment.
"""

import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

import httpx
import psycopg
from sqlalchemy import select

from app.store.models import HELD, Job
from tests.faults.arena import LEASE_SECONDS, Arena

KILL, STOP, CONTINUE = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT
HOUR = 3600
UNLIMITED = resource.RLIM_INFINITY


class Undo(NamedTuple):
    """How a fault ends: `call`, in so many seconds."""

    seconds: float
    call: Callable[[], object]


def _nothing() -> None:
    """It ends by itself, or by the service's doing."""


OVER = Undo(0, _nothing)
Injection = Callable[[Arena, Random], Undo | None]


@dataclass(frozen=True)
class Fault:
    """Something that happens, on which databases, and whether the real engine's jobs see it too."""

    name: str
    inject: Injection
    database: Literal["any", "sqlite", "postgresql"] = "any"


# --- processes ------------------------------------------------------------------------------------


def _some_worker(arena: Arena, rng: Random) -> int:
    """A busy one more often than not."""
    busy = [pid for _, pid in arena.held()]
    if busy and rng.random() < 0.8:
        return rng.choice(busy)
    return rng.choice(arena.workers).pid


def kill_worker(arena: Arena, rng: Random) -> Undo | None:
    return OVER if arena.signal(_some_worker(arena, rng), KILL) else None


def shut_worker_down(arena: Arena, rng: Random) -> Undo | None:
    return OVER if arena.signal(_some_worker(arena, rng), signal.SIGTERM) else None


def freeze_worker(shortest: float, longest: float) -> Injection:
    def inject(arena: Arena, rng: Random) -> Undo | None:
        pid = _some_worker(arena, rng)
        if not arena.signal(pid, STOP):
            return None
        return Undo(rng.uniform(shortest, longest), lambda: arena.signal(pid, CONTINUE))

    return inject


def signal_engine(number: signal.Signals) -> Injection:
    """A stopped engine is not continued: its worker has to find out."""

    def inject(arena: Arena, rng: Random) -> Undo | None:
        engines = list(arena.engines())
        return OVER if engines and arena.signal(rng.choice(engines), number) else None

    return inject


def kill_api(arena: Arena, rng: Random) -> Undo | None:
    return OVER if arena.signal(arena.api.pid, KILL) else None


def freeze_api(arena: Arena, rng: Random) -> Undo | None:
    pid = arena.api.pid
    if not arena.signal(pid, STOP):
        return None
    return Undo(rng.uniform(0.5, 3), lambda: arena.signal(pid, CONTINUE))


# --- broker and deliveries ------------------------------------------------------------------------


def kill_broker(*, data: bool) -> Injection:
    def inject(arena: Arena, rng: Random) -> Undo:
        arena.stop_broker()
        if not data:
            for path in (arena.folder / "broker").rglob("*.aof"):
                path.unlink()
            for path in (arena.folder / "broker").rglob("*.manifest"):
                path.unlink()
        return Undo(rng.uniform(0, 2), arena.start_broker)

    return inject


def freeze_broker(arena: Arena, rng: Random) -> Undo | None:
    assert arena.broker is not None
    pid = arena.broker.pid
    if not arena.signal(pid, STOP):
        return None
    return Undo(rng.uniform(0.5, 4), lambda: arena.signal(pid, CONTINUE))


def lose_deliveries(arena: Arena, rng: Random) -> Undo | None:
    return OVER if arena.lose_ids() else None


def double_deliveries(arena: Arena, rng: Random) -> Undo | None:
    """Every job that is not over, and some that are, three times, which is for all workers."""
    with arena.store.read() as session:
        ids = list(session.scalars(select(Job.id).order_by(Job.id.desc()).limit(8)))
    if not ids:
        return None
    return OVER if arena.deliver(ids * 3) else None


# --- the database, the clock, the disk ------------------------------------------------------------


def terminate_connections(arena: Arena, rng: Random) -> Undo:
    with psycopg.connect(arena.database_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    arena.store.close()  # ours went, too
    return OVER


def cut_connections(arena: Arena, rng: Random) -> Undo:
    assert arena.proxy is not None
    arena.proxy.cut()
    return OVER


def refuse_connections(arena: Arena, rng: Random) -> Undo:
    assert arena.proxy is not None
    arena.proxy.refuse()
    return Undo(rng.uniform(0.5, LEASE_SECONDS + 1), arena.proxy.admit)


def freeze_connections(arena: Arena, rng: Random) -> Undo:
    assert arena.proxy is not None
    arena.proxy.freeze()
    return Undo(rng.uniform(0.5, LEASE_SECONDS + 1), arena.proxy.thaw)


def lock_database(arena: Arena, rng: Random) -> Undo:
    """Somebody else writes to the SQLite file for long."""
    connection = arena.store.engine.raw_connection()
    connection.cursor().execute("BEGIN IMMEDIATE")

    def undo() -> None:
        connection.rollback()
        connection.close()

    return Undo(rng.uniform(0.5, LEASE_SECONDS + 1), undo)


def set_clock(seconds: float, *, whole_machine: bool) -> Injection:
    def inject(arena: Arena, rng: Random) -> Undo:
        process = rng.choice([arena.api, *arena.workers])
        file = arena.points / ("clock" if whole_machine else f"clock-{process.name}")
        part = file.with_suffix(".part")
        part.write_text(str(seconds))
        part.rename(file)
        return Undo(rng.uniform(0.5, 3), lambda: file.unlink(missing_ok=True))

    return inject


def fill_disk(role: str) -> Injection:
    """No file of a process grows any more (a limit that its children inherit)."""

    def inject(arena: Arena, rng: Random) -> Undo | None:
        pid = arena.api.pid if role == "api" else _some_worker(arena, rng)
        try:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, UNLIMITED))
        except ProcessLookupError:
            return None
        return Undo(rng.uniform(0.5, 2), lambda: _make_room(arena))

    return inject


def _make_room(arena: Arena) -> None:
    workers = [worker.pid for worker in arena.workers]
    for pid in (arena.api.pid, *workers, *arena.engines()):
        try:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))
        except ProcessLookupError:
            continue  # it ended, and its successor has no limit


# --- chosen points --------------------------------------------------------------------------------

Trigger = Callable[[Arena, Random], object]
POINT_SECONDS = 8.0  # for somebody to pass an armed point


def cancel_job(arena: Arena, rng: Random) -> None:
    """Through the API, as a user does it; the answer may never come."""
    with arena.store.read() as session:
        running = list(session.scalars(select(Job.id).where(Job.status.in_(HELD))))
    if running:
        try:
            httpx.post(f"{arena.url}/jobs/{rng.choice(running)}/cancel", timeout=3, trust_env=False)
        except httpx.TransportError:
            return


@dataclass(frozen=True)
class PointFault:
    """A process stops or kills itself at a point; `trigger` brings somebody there."""

    point: str
    action: Literal["SIGKILL", "SIGSTOP"]
    trigger: Trigger | None = None
    hold: tuple[float, float] = (LEASE_SECONDS + 0.5, LEASE_SECONDS + 1.5)  # how long stopped
    database: Literal["any", "sqlite", "postgresql"] = "any"

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{'kill -9' if self.action == 'SIGKILL' else 'stop'} at {self.point}"


_kill_engine = signal_engine(KILL)
POINTS = (
    # Between commit and publish, and around it.
    PointFault("create:uncommitted", "SIGKILL"),
    PointFault("create:committed", "SIGKILL"),
    PointFault("mark_published:before", "SIGKILL"),
    # Around a claim.
    PointFault("claim:before", "SIGSTOP"),
    PointFault("claim:uncommitted", "SIGKILL"),
    PointFault("claim:committed", "SIGKILL"),
    PointFault("claim:committed", "SIGSTOP"),
    # While bytes are stored, and between them and what refers to them.
    PointFault("add_chunk:committed", "SIGKILL"),
    PointFault("put_file:done", "SIGKILL"),
    PointFault("put_file:done", "SIGSTOP"),
    PointFault("set_checkpoint:uncommitted", "SIGKILL"),
    PointFault("set_checkpoint:uncommitted", "SIGSTOP", hold=(0.5, LEASE_SECONDS)),
    PointFault("set_checkpoint:committed", "SIGKILL"),
    # Around a success.
    PointFault("succeed:before", "SIGKILL"),
    PointFault("succeed:before", "SIGSTOP"),
    PointFault("succeed:uncommitted", "SIGKILL"),
    PointFault("succeed:uncommitted", "SIGSTOP"),
    PointFault("succeed:committed", "SIGKILL"),
    PointFault("succeed:committed", "SIGSTOP"),
    # While an attempt is given up.
    PointFault("give_up_attempt:uncommitted", "SIGKILL", _kill_engine),
    PointFault("give_up_attempt:committed", "SIGKILL", _kill_engine),
    # During a cancel, and when a worker gives its job back.
    PointFault("request_cancel:uncommitted", "SIGKILL", cancel_job),
    PointFault("request_cancel:committed", "SIGKILL", cancel_job),
    PointFault("release:before", "SIGKILL", cancel_job),
    PointFault("release:before", "SIGSTOP", cancel_job),
    PointFault("release:uncommitted", "SIGKILL", cancel_job),
    PointFault("release:committed", "SIGKILL", shut_worker_down),
    # While a janitor works.
    PointFault("requeue_expired:uncommitted", "SIGKILL", kill_worker),
    PointFault("requeue_expired:committed", "SIGKILL", kill_worker),
)

FAULTS = (
    Fault("worker: kill -9", kill_worker),
    Fault("worker: stopped for a moment", freeze_worker(0.2, 1.5)),
    Fault("worker: stopped past its lease", freeze_worker(LEASE_SECONDS + 0.5, LEASE_SECONDS + 2)),
    Fault("worker: SIGTERM", shut_worker_down),
    Fault("engine: kill -9", _kill_engine),
    Fault("engine: hangs", signal_engine(STOP)),
    Fault("API: kill -9", kill_api),
    Fault("API: stopped", freeze_api),
    Fault("broker: kill -9", kill_broker(data=True)),
    Fault("broker: kill -9, data lost", kill_broker(data=False)),
    Fault("broker: stopped", freeze_broker),
    Fault("delivery: lost", lose_deliveries),
    Fault("delivery: doubled", double_deliveries),
    Fault("database: connections ended by it", terminate_connections, "postgresql"),
    Fault("database: connections cut", cut_connections, "postgresql"),
    Fault("database: unreachable", refuse_connections, "postgresql"),
    Fault("database: silent", freeze_connections, "postgresql"),
    Fault("database: locked", lock_database, "sqlite"),
    Fault("clock: ahead by an hour, then back", set_clock(HOUR, whole_machine=True), "sqlite"),
    Fault("clock: behind by an hour, then ahead", set_clock(-HOUR, whole_machine=True), "sqlite"),
    Fault("clock: one machine's ahead", set_clock(HOUR, whole_machine=False), "postgresql"),
    Fault("clock: one machine's behind", set_clock(-HOUR, whole_machine=False), "postgresql"),
    Fault("disk: full for a worker", fill_disk("worker")),
    Fault("disk: full for the API", fill_disk("api")),
)

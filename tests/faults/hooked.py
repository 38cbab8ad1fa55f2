"""The service's own API and workers, with a way in at chosen points (`-m tests.faults.hooked`).

Nothing of this is in the product. This program imports it, puts a point around the functions that
change something, and then forks a process whenever one is asked for (that saves a second of imports
a start). A point that is armed (a file of its name in the folder TD3_FAULTS_FOLDER) is fired once,
by the process that comes by first: it kills or stops itself. The clock of a process can be put
wrong by a file, too.

stdin: one JSON object a line, {"role": "api" | "worker", "name", "log"}; stdout: the port of the
API first, then the number of each process. When stdin ends, all of them die.
"""

import functools
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import uvicorn
from sqlalchemy import event
from sqlalchemy.orm import Session

from app.blobs.sql import SqlBlobStore
from app.main import app
from app.processes.launch import die_with_parent
from app.store import jobs, lost_jobs
from tests.faults.points import FOLDER_VARIABLE, fire
from worker.celery_app import celery_app

# Each has three points: NAME:before, NAME:uncommitted (done, in an open transaction) and
# NAME:committed. The latter two are passed only when it did something.
CHANGES = (
    "create",
    "request_cancel",
    "mark_published",
    "claim",
    "set_checkpoint",
    "succeed",
    "give_up_attempt",
    "release",
)


def install(folder: Path) -> None:
    """Put the points around the functions."""
    for name in CHANGES:
        _wrap_change(folder, jobs, name)
    _wrap_change(folder, lost_jobs, "requeue_expired")
    _fire_after(folder, SqlBlobStore, "put_chunk", "add_chunk:committed")
    _fire_after(folder, SqlBlobStore, "put_file", "put_file:done")

    @event.listens_for(Session, "after_commit")
    def _committed(session: Session) -> None:
        for name in session.info.pop("points", []):
            fire(folder, f"{name}:committed")


def _wrap_change(folder: Path, module: ModuleType, name: str) -> None:
    inner: Callable[..., Any] = getattr(module, name)

    @functools.wraps(inner)
    def change(session: Session, *arguments: Any, **options: Any) -> Any:
        fire(folder, f"{name}:before")
        outcome = inner(session, *arguments, **options)
        if outcome:
            fire(folder, f"{name}:uncommitted")
            session.info.setdefault("points", []).append(name)
        return outcome

    setattr(module, name, change)


def _fire_after(folder: Path, owner: type, name: str, point: str) -> None:
    inner: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(inner)
    def call(*arguments: Any, **options: Any) -> Any:
        outcome = inner(*arguments, **options)
        fire(folder, point)
        return outcome

    setattr(owner, name, call)


def shift_clock(*files: Path) -> None:
    """Let the seconds in these files, where they exist, be added to what the product takes for now.

    That is the wall clock; the monotonic clock has no jumps.
    """

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            off = sum(float(file.read_text()) for file in files if file.exists())
            return datetime.now(tz) + timedelta(seconds=off)

    for name, module in list(sys.modules.items()):
        ours = name.partition(".")[0] in ("app", "worker")
        if ours and getattr(module, "datetime", None) is datetime:
            module.datetime = Shifted  # type: ignore[attr-defined]


def become(role: str, name: str, log: Path, folder: Path, listener: socket.socket) -> NoReturn:
    """This process, just forked, is the API or a worker from now on."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
    shift_clock(folder / "clock", folder / f"clock-{name}")
    if role == "api":
        logging.basicConfig(level=logging.INFO)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
    else:
        quick = ["--without-mingle", "--without-gossip", "-n", f"{name}@%h"]
        celery_app.worker_main(["worker", "-P", "threads", "-c", "1", *quick])
    os._exit(0)


def main() -> None:
    """Fork a process for each line."""
    folder = Path(os.environ[FOLDER_VARIABLE])
    install(folder)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    listener = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    here = os.getpid()
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            die_with_parent(here)
            become(order["role"], order["name"], Path(order["log"]), folder, listener)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

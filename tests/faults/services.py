"""The services that faults are tried on, each with a database of its own."""

import logging
import random
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from app.store.migrate import upgrade
from tests import servers
from tests.faults.chaos import Kind, draw
from tests.faults.injections import FAULTS, POINTS
from tests.faults.run import Outcome, run

REAL_FAULTS = (
    "engine: kill -9",
    "worker: kill -9",
    "worker: stopped past its lease",
    "worker: SIGTERM",
    "kill -9 at put_file:done",
    "kill -9 at set_checkpoint:uncommitted",
    "kill -9 at set_checkpoint:committed",
    "kill -9 at succeed:before",
    "stop at succeed:uncommitted",
)


@contextmanager
def sqlite() -> Iterator[str]:
    """A new SQLite database."""
    with tempfile.TemporaryDirectory(prefix="td3-faults-db-") as folder:
        yield f"sqlite:///{Path(folder) / 'td3.sqlite3'}"


@contextmanager
def postgresql() -> Iterator[str]:
    """A new PostgreSQL database."""
    name = sql.Identifier(f"td3_faults_{secrets.token_hex(6)}")
    with servers.postgresql() as admin, psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        try:
            yield urlunsplit(urlsplit(admin)._replace(path=f"/{name.as_string().strip(chr(34))}"))
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def real_deck(rng: random.Random) -> list[Kind]:
    """Faults that end, or seem to end, an attempt: the real engine has to go on from them."""
    chosen: list[Kind] = [kind for kind in (*FAULTS, *POINTS) if kind.name in REAL_FAULTS]
    return rng.sample(chosen, len(chosen))


def run_on(name: str, faults: int, seed: int) -> Outcome:
    """One service and its faults. To be run in a main thread, in a process of its own."""
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {name}: %(message)s")
    for chatty in ("httpx", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    rng = random.Random(seed)
    database, real = SERVICES[name]
    kind = "sqlite" if database is sqlite else "postgresql"
    deck = real_deck(rng) if real else draw(kind, faults, rng)
    with database() as url:
        upgrade(url)
        return run(url, deck, seed, real_engine=real)


SERVICES = {
    "SQLite": (sqlite, False),
    "PostgreSQL": (postgresql, False),
    "real engine": (postgresql, True),
}

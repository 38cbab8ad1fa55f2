"""What the API and the workers need of the stores before they can do anything.

Each check returns `OK`, or what is wrong in words that may be shown to anybody.
"""

import logging
from collections.abc import Callable
from functools import cache

from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.orm import Session

from app.blobs.protocol import BlobStore
from app.store.engine import STORE_ERRORS, Store, only_reads
from app.store.migrate import alembic_config

OK = "ok"

logger = logging.getLogger(__name__)


def storage_checks(store: Store, blobs: BlobStore) -> dict[str, Callable[[], str]]:
    """The checks of everything that stores, by name."""
    return {
        "database": lambda: _check_database(store),
        "migrations": lambda: _check_migrations(store),
        "blobs": lambda: _check_blobs(store, blobs),
    }


def _check_database(store: Store) -> str:
    try:
        with store.read() as session:
            if only_reads(session):
                return "only reads: a standby, which has not taken over"
    except STORE_ERRORS as error:
        logger.warning("the database does not answer: %s", error)
        return f"does not answer: {store.words(error)}"
    return OK


def _check_migrations(store: Store) -> str:
    try:
        with store.read() as session:
            current = _revision(session)
            head = _head(store)
    except STORE_ERRORS:
        return "unknown"
    if current == head:
        return OK
    have = "there are no tables yet" if current is None else f"the tables are at {current}"
    return f"{have}, this release needs {head}: run python -m app.store.migrate"


def _revision(session: Session) -> str | None:
    # Alembic would say the same, and write two records to the log each time.
    if not inspect(session.connection()).has_table("alembic_version"):
        return None
    return session.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


@cache
def _head(store: Store) -> str | None:
    """The newest revision of this release; the files are read once."""
    with store.engine.connect() as connection:
        return ScriptDirectory.from_config(alembic_config(connection)).get_current_head()


def _check_blobs(store: Store, blobs: BlobStore) -> str:
    try:
        blobs.check()
    except STORE_ERRORS as error:
        return f"do not answer: {store.words(error)}"
    return OK

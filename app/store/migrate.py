"""Migrates a database's tables: `upgrade`, or `python -m app.store.migrate`."""

import logging
import os
import sys
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event, text

from app.errors import StorageUnavailableError
from app.startup import start
from app.store.engine import open_store

logger = logging.getLogger(__name__)

_LOCK = 7_430_301  # key of PostgreSQL's advisory lock, which one migration at a time holds


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration, bound to an open transaction."""
    config = Config()
    config.set_main_option("script_location", str(files("migrations")))
    config.attributes["connection"] = connection
    return config


def upgrade(url: str, revision: str = "head") -> None:
    """Migrate to `revision` in one transaction. Several processes may start it concurrently.

    Raises:
        StorageUnavailableError: the database does not answer.
        RuntimeError: the migration would leave dangling references.
    """
    _run(url, lambda config: command.upgrade(config, revision))


def downgrade(url: str, revision: str) -> None:
    """Migrate back to `revision` (`base`: no tables) in one transaction; raises as `upgrade`."""
    _run(url, lambda config: command.downgrade(config, revision))


def _run(url: str, migrate: Callable[[Config], None]) -> None:
    store = open_store(url)
    if store.engine.dialect.name == "sqlite":
        # SQLite alters a table by copying it and dropping the old one. With foreign keys on, that
        # would delete rows that refer to it. The switch has no effect within a transaction.
        event.listen(store.engine, "connect", _ignore_foreign_keys)
    try:
        with store.write() as session:
            connection = session.connection()
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL lock_timeout = 0"))
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            migrate(alembic_config(connection))
            if connection.dialect.name == "sqlite":
                _check_foreign_keys(connection)
    finally:
        store.close()


def _ignore_foreign_keys(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA foreign_keys = OFF")


def _check_foreign_keys(connection: Connection) -> None:
    broken = connection.execute(text("PRAGMA foreign_key_check")).all()
    if broken:
        raise RuntimeError(f"the migration would leave rows that refer to nothing: {broken[:5]}")


def main() -> int:
    """Run the command; returns the exit code."""
    settings = start()
    try:
        upgrade(settings.database_url)
    except StorageUnavailableError as error:
        logger.error("not migrated, the database does not answer: %s", error)
        return os.EX_TEMPFAIL
    return 0


if __name__ == "__main__":
    sys.exit(main())

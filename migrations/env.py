"""Alembic's entry: runs the migrations on the connection of app.store.migrate, or of `alembic`."""

from typing import Literal

from alembic import context
from sqlalchemy import Connection

from app.settings import read_settings
from app.store.engine import open_store
from app.store.models import Base, UtcDateTime


def _render_item(_kind: str, item: object, _context: object) -> str | Literal[False]:
    """A migration must not change when the models do: name what the column is in the database."""
    return "sa.DateTime(timezone=True)" if isinstance(item, UtcDateTime) else False


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        # SQLite can change few things of a table in place: Alembic makes a new one and copies.
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        render_item=_render_item,
    )
    with context.begin_transaction():
        context.run_migrations()


def main() -> None:
    """Use the caller's transaction if there is one; the command line gets one of its own."""
    given = context.config.attributes.get("connection")
    if given is not None:
        _migrate(given)
        return
    store = open_store(read_settings().database_url)
    with store.write() as session:
        _migrate(session.connection())
    store.close()


main()

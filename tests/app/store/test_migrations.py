"""Migrations make the tables that the models describe, on both databases, and can be undone."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from app.store.engine import make_engine, open_store
from app.store.migrate import downgrade, upgrade
from app.store.models import Base


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'td3.sqlite3'}"
    url: str = request.getfixturevalue("empty_postgresql_url")
    return url


def tables(url: str) -> set[str]:
    engine = make_engine(url)
    names = set(inspect(engine).get_table_names())
    engine.dispose()
    return names


def test_up_and_down(empty_url: str) -> None:
    upgrade(empty_url)
    assert tables(empty_url) == {*Base.metadata.tables, "alembic_version"}
    upgrade(empty_url)
    downgrade(empty_url, "base")
    assert tables(empty_url) == {"alembic_version"}
    upgrade(empty_url)
    assert tables(empty_url) == {*Base.metadata.tables, "alembic_version"}


def test_several_processes_may_upgrade_at_once(empty_url: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(upgrade, [empty_url] * 3))
    assert set(Base.metadata.tables) <= tables(empty_url)


def test_models_and_migrations_agree(database_url: str) -> None:
    store = open_store(database_url)
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    store.close()


def test_checks_reached_the_database(database_url: str) -> None:
    store = open_store(database_url)
    found = {check["name"] for check in inspect(store.engine).get_check_constraints("jobs")}
    assert found == {"ck_jobs_status", "ck_jobs_lease"}
    store.close()

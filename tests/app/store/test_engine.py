"""Sessions, times and ids."""

import re
import time
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError, StatementError

from app.errors import StorageUnavailableError, kind_of
from app.settings import Settings
from app.store import datasets, job_reads, jobs
from app.store.engine import Store, database_now, make_engine, open_store
from app.store.ids import new_id
from app.store.models import DEFAULT_TENANT
from tests.app.store.kit import NOW, job, make_dataset, make_job


def test_a_failed_block_leaves_nothing(store: Store, dataset_id: str) -> None:
    with pytest.raises(ZeroDivisionError), store.write() as session:
        jobs.create(
            session,
            tenant_id=DEFAULT_TENANT,
            dataset_id=dataset_id,
            config={},
            preset="fast",
            name=None,
            max_attempts=1,
        )
        raise ZeroDivisionError
    with store.read() as session:
        assert job_reads.page(session, tenant_id=DEFAULT_TENANT, limit=1, after=None) == ([], False)


def test_no_statement_or_lock_is_waited_for_without_end(postgresql_url: str) -> None:
    """What docs/operations.md says, as PostgreSQL understood it."""
    store = open_store(postgresql_url)
    with store.read() as session:
        asked = {
            name: session.scalar(text(f"SHOW {name}"))
            for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        }
    store.close()
    assert list(asked.values()) == ["1min", "30s", "1min"]


def test_a_process_with_a_wrong_clock_asks_the_database(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Ahead":
            return super().now(tz) + timedelta(hours=1)

    monkeypatch.setattr("app.store.engine.datetime", Ahead)
    with store.read() as session:
        off = database_now(session) - datetime.now(UTC)
    # SQLite has no clock of its own.
    wrong = timedelta(hours=store.engine.dialect.name == "sqlite")
    assert abs(off - wrong) < timedelta(minutes=5)


def test_times_are_utc_whatever_their_zone(store: Store, dataset_id: str) -> None:
    job_id = make_job(store, dataset_id)
    with store.write() as session:
        jobs.mark_published(session, job_id, NOW.astimezone(timezone(timedelta(hours=5))))
    published = job(store, job_id).published_at
    assert published == NOW
    assert published.tzinfo is UTC
    with pytest.raises(StatementError, match="without a zone"), store.write() as session:
        jobs.mark_published(session, job_id, datetime(2030, 1, 1))


def test_datasets(store: Store, tmp_path: Path) -> None:
    made = sorted((make_dataset(store, tmp_path, bytes([n])) for n in range(3)), reverse=True)
    with store.read() as session:
        page, more = datasets.page(session, tenant_id=DEFAULT_TENANT, limit=2)
        assert ([found.id for found in page], more) == (made[:2], True)
        page, more = datasets.page(session, tenant_id=DEFAULT_TENANT, limit=2, after=made[1])
        assert ([found.id for found in page], more) == (made[2:], False)
        found = datasets.get(session, made[0], tenant_id=DEFAULT_TENANT)
        assert found is not None
        assert found.statistics == {"users": 3}
        assert datasets.get(session, "ds_nothing", tenant_id=DEFAULT_TENANT) is None


def test_a_sqlite_writer_waits_for_another(sqlite_url: str) -> None:
    store = Store(make_engine(sqlite_url))
    with store.engine.connect() as connection:
        pragmas = [
            connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        ]
    assert pragmas == ["wal", 1, 30_000]
    other = Store(make_engine(sqlite_url))
    with store.write() as writing:
        writing.connection()  # BEGIN IMMEDIATE: nobody else may write from here on
        with other.read() as reading:
            assert job_reads.page(reading, tenant_id=DEFAULT_TENANT, limit=1) == ([], False)
        with pytest.raises(OperationalError, match="locked"), other.engine.connect() as second:
            second.execute(text("PRAGMA busy_timeout = 1"))
            second.execute(text("UPDATE jobs SET name = ''"))
    store.close()
    other.close()


def test_ids_sort_by_time() -> None:
    first = new_id("job")
    time.sleep(0.002)  # ids of one millisecond come in any order
    second = new_id("job")
    assert first < second
    assert re.fullmatch(r"job_[0-9a-hjkmnp-tv-z]{26}", first)


def test_other_databases_are_refused() -> None:
    with pytest.raises(ValueError, match="mysql"):
        make_engine("mysql://localhost/td3")


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TD3_DATA_DIR", "/data")
    monkeypatch.setenv("TD3_ENGINE_COMMAND", '["engine", "run"]')
    settings = Settings()
    assert settings.database_url == "sqlite:////data/td3.sqlite3"
    assert settings.engine_command == ["engine", "run"]
    assert all(field.description for field in Settings.model_fields.values())
    with pytest.raises(ValueError, match="HEARTBEAT"):
        Settings(heartbeat_seconds=60, lease_seconds=60)


def test_an_outage_has_a_type_of_its_own() -> None:
    store = open_store("postgresql://td3:swordfish@127.0.0.1:1/td3")
    for session_of in (store.read, store.write):
        with pytest.raises(StorageUnavailableError) as caught, session_of() as session:
            session.execute(text("SELECT 1"))
        assert kind_of(caught.value) == "OperationalError"
    store.close()


def test_other_errors_of_the_database_keep_their_type(store: Store) -> None:
    with pytest.raises(IntegrityError), store.write() as session:
        make = {"tenant_id": "none", "name": "x", "fingerprint": "0" * 64, "source_sha256": "0"}
        datasets.create(session, **make, source_bytes=1, statistics={})


def test_words_for_everybody_have_neither_address_nor_password() -> None:
    for url in (
        "postgresql://td3:swordfish@127.0.0.1:1/td3",
        "postgresql://td3:swordfish@/td3?host=127.0.0.1:1&host=localhost:1",
        "postgresql://td3:swordfish@no-such-host.invalid/td3",
    ):
        store = open_store(url)
        with pytest.raises(StorageUnavailableError) as caught, store.read() as session:
            session.execute(text("SELECT 1"))
        store.close()
        words = store.words(caught.value)
        assert words.startswith("OperationalError: ")
        assert re.search("Connection refused|resolve", words)
        for hidden in ("swordfish", "127.0.0.1", "localhost", "::1", "no-such-host"):
            assert hidden not in words

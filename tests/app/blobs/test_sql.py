"""The blob store in SQL: round trips, concurrent and interrupted puts, sweeps."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import func, select, update

from app.blobs.protocol import BlobError, BlobStore, get_to_file
from app.blobs.sql import CHUNK_BYTES, SqlBlobStore
from app.store import jobs
from app.store.engine import Store
from app.store.models import Blob, BlobChunk
from tests.app.store.kit import NOW, claim, make_dataset, make_job

HOUR = timedelta(hours=1)
NONE = timedelta(seconds=-1)  # an age that every blob has


@pytest.fixture
def blobs(store: Store) -> BlobStore:
    return SqlBlobStore(store)


def write(path: Path, size: int) -> Path:
    """A file of `size` bytes that differ from chunk to chunk."""
    block = hashlib.sha256(str(size).encode()).digest()
    path.write_bytes((block * (size // len(block) + 1))[:size])
    return path


def put(blobs: BlobStore, path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return blobs.put_file(path)[0]


def count(store: Store, table: type[Blob] | type[BlobChunk]) -> int:
    with store.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_round_trip(size: int, store: Store, blobs: BlobStore, tmp_path: Path) -> None:
    source = write(tmp_path / "source", size)
    sha256, stored = blobs.put_file(source)
    assert (sha256, stored) == (hashlib.sha256(source.read_bytes()).hexdigest(), size)
    assert blobs.put_file(source) == (sha256, size)
    assert b"".join(blobs.open_reader(sha256)) == source.read_bytes()
    get_to_file(blobs, sha256, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert count(store, Blob) == 1
    assert count(store, BlobChunk) == -(-size // CHUNK_BYTES)


def test_missing(store: Store, blobs: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(BlobError, match="no blob"):
        blobs.open_reader("0" * 64)


def test_damage_is_noticed(store: Store, blobs: BlobStore, tmp_path: Path) -> None:
    sha256 = put(blobs, tmp_path / "source", b"content")
    with store.write() as session:
        session.execute(update(BlobChunk).values(data=b"c0ntent"))
    with pytest.raises(BlobError, match="damaged"):
        get_to_file(blobs, sha256, tmp_path / "target")
    assert [path.name for path in tmp_path.glob("*target*")] == []
    assert [path.name for path in tmp_path.glob(".blob*")] == []


def test_many_put_the_same_at_once(store: Store, blobs: BlobStore, tmp_path: Path) -> None:
    source, threads = write(tmp_path / "source", 3 * CHUNK_BYTES), 4
    barrier = Barrier(threads)

    def attempt(_: int) -> str:
        barrier.wait(timeout=10)
        return blobs.put_file(source)[0]

    with ThreadPoolExecutor(threads) as pool:
        (sha256,) = set(pool.map(attempt, range(threads)))
    assert b"".join(blobs.open_reader(sha256)) == source.read_bytes()


def test_an_interrupted_put_is_invisible_and_swept(
    store: Store, blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "source", 3 * CHUNK_BYTES)
    put_chunk = SqlBlobStore.put_chunk

    def break_at_the_last(self: SqlBlobStore, sha256: str, position: int, data: bytes) -> None:
        if position == 2:
            raise ConnectionError
        put_chunk(self, sha256, position, data)

    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(SqlBlobStore, "put_chunk", break_at_the_last)
        blobs.put_file(source)
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    with pytest.raises(BlobError, match="no blob"):
        blobs.open_reader(sha256)
    assert count(store, BlobChunk) == 2
    assert blobs.sweep(older_than=HOUR) == 0  # its writer may still be at it
    assert blobs.sweep(older_than=NONE) == 1
    assert count(store, BlobChunk) == 0
    assert blobs.put_file(source)[0] == sha256
    assert b"".join(blobs.open_reader(sha256)) == source.read_bytes()


def test_an_interrupted_put_is_taken_up(store: Store, blobs: BlobStore, tmp_path: Path) -> None:
    source = write(tmp_path / "source", 2 * CHUNK_BYTES)
    sha256, size = blobs.put_file(source)
    with store.write() as session:  # as if the last transaction had not happened
        session.execute(update(Blob).values(complete=False))
    assert blobs.put_file(source) == (sha256, size)
    assert b"".join(blobs.open_reader(sha256)) == source.read_bytes()


def test_a_put_that_was_swept_meanwhile_fails(
    store: Store, blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "source", 2 * CHUNK_BYTES)
    put_chunk = SqlBlobStore.put_chunk

    def sweep_between(self: SqlBlobStore, sha256: str, position: int, data: bytes) -> None:
        put_chunk(self, sha256, position, data)
        blobs.sweep(older_than=NONE)

    monkeypatch.setattr(SqlBlobStore, "put_chunk", sweep_between)
    with pytest.raises(BlobError, match="swept"):
        blobs.put_file(source)


def test_a_blob_from_before_the_clock_was_put_back_is_not_kept_for_that(
    store: Store, blobs: BlobStore, tmp_path: Path
) -> None:
    blobs.put_file(write(tmp_path / "source", 10))
    with store.write() as session:
        session.execute(update(Blob).values(created_at=datetime.now(UTC) + 5 * HOUR))
    assert blobs.sweep(older_than=HOUR) == 0  # it may still be in use
    assert blobs.sweep(older_than=NONE) == 1


def test_a_sweep_leaves_what_is_needed_and_what_is_new(
    store: Store, blobs: BlobStore, tmp_path: Path
) -> None:
    dataset_id = make_dataset(store, tmp_path, b"log")
    checkpoint = put(blobs, tmp_path / "a", b"checkpoint")
    artifact = put(blobs, tmp_path / "b", b"artifact")
    forgotten = put(blobs, tmp_path / "c", b"forgotten")
    new = put(blobs, tmp_path / "d", b"new")
    lease = claim(store, make_job(store, dataset_id))
    done = claim(store, make_job(store, dataset_id))
    with store.write() as session:
        assert jobs.set_checkpoint(session, lease, checkpoint, NOW)
        stored = jobs.StoredArtifact("a", "text/plain", 8, artifact)
        assert jobs.succeed(session, done, artifacts=[stored], metrics={}, now=NOW)
        session.execute(
            update(Blob).where(Blob.sha256 != new).values(created_at=datetime.now(UTC) - 2 * HOUR)
        )
    assert blobs.sweep(older_than=HOUR) == 1
    with pytest.raises(BlobError):
        blobs.open_reader(forgotten)
    # Putting what is there already makes it young again: somebody is about to refer to it.
    with store.write() as session:
        jobs.give_up_attempt(session, lease, error={}, permanent=True, now=NOW)
    assert put(blobs, tmp_path / "a", b"checkpoint") == checkpoint
    assert blobs.sweep(older_than=HOUR) == 0
    assert blobs.sweep(older_than=NONE) == 2  # `checkpoint` and `new`
    assert count(store, Blob) == 2  # the log and the artifact

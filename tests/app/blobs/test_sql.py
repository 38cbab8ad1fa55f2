"""Bytes in SQL: there and back, written by many, interrupted, swept."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import func, select, update

from app.blobs import sql as blobs
from app.store import jobs
from app.store.engine import Store
from app.store.models import Blob, BlobChunk
from tests.app.store.conftest import NOW, claim, make_dataset, make_job

HOUR = timedelta(hours=1)
NONE = timedelta(seconds=-1)  # an age that every blob has


def write(path: Path, size: int) -> Path:
    """A file of `size` bytes that differ from chunk to chunk."""
    block = hashlib.sha256(str(size).encode()).digest()
    path.write_bytes((block * (size // len(block) + 1))[:size])
    return path


def put(store: Store, path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return blobs.put_file(store, path)[0]


def count(store: Store, table: type[Blob] | type[BlobChunk]) -> int:
    with store.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


@pytest.mark.parametrize(
    "size", [0, 1, blobs.CHUNK_BYTES, blobs.CHUNK_BYTES + 1, 2 * blobs.CHUNK_BYTES]
)
def test_round_trip(size: int, store: Store, tmp_path: Path) -> None:
    source = write(tmp_path / "source", size)
    sha256, stored = blobs.put_file(store, source)
    assert (sha256, stored) == (hashlib.sha256(source.read_bytes()).hexdigest(), size)
    assert blobs.put_file(store, source) == (sha256, size)
    assert b"".join(blobs.open_reader(store, sha256)) == source.read_bytes()
    blobs.get_to_file(store, sha256, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert count(store, Blob) == 1
    assert count(store, BlobChunk) == -(-size // blobs.CHUNK_BYTES)


def test_missing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(blobs.BlobError, match="no blob"):
        blobs.open_reader(store, "0" * 64)


def test_damage_is_noticed(store: Store, tmp_path: Path) -> None:
    sha256 = put(store, tmp_path / "source", b"content")
    with store.write() as session:
        session.execute(update(BlobChunk).values(data=b"c0ntent"))
    with pytest.raises(blobs.BlobError, match="damaged"):
        blobs.get_to_file(store, sha256, tmp_path / "target")
    assert [path.name for path in tmp_path.glob("*target*")] == []
    assert [path.name for path in tmp_path.glob(".blob*")] == []


def test_many_put_the_same_at_once(store: Store, tmp_path: Path) -> None:
    source, threads = write(tmp_path / "source", 3 * blobs.CHUNK_BYTES), 4
    barrier = Barrier(threads)

    def attempt(_: int) -> str:
        barrier.wait(timeout=10)
        return blobs.put_file(store, source)[0]

    with ThreadPoolExecutor(threads) as pool:
        (sha256,) = set(pool.map(attempt, range(threads)))
    assert b"".join(blobs.open_reader(store, sha256)) == source.read_bytes()


def test_an_interrupted_put_is_invisible_and_swept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "source", 3 * blobs.CHUNK_BYTES)
    add_chunk = blobs._add_chunk

    def break_at_the_last(store: Store, sha256: str, position: int, data: bytes) -> None:
        if position == 2:
            raise ConnectionError
        add_chunk(store, sha256, position, data)

    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(blobs, "_add_chunk", break_at_the_last)
        blobs.put_file(store, source)
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    with pytest.raises(blobs.BlobError, match="no blob"):
        blobs.open_reader(store, sha256)
    assert count(store, BlobChunk) == 2
    assert blobs.sweep(store, older_than=HOUR) == 0  # its writer may still be at it
    assert blobs.sweep(store, older_than=NONE) == 1
    assert count(store, BlobChunk) == 0
    assert blobs.put_file(store, source)[0] == sha256
    assert b"".join(blobs.open_reader(store, sha256)) == source.read_bytes()


def test_an_interrupted_put_is_taken_up(store: Store, tmp_path: Path) -> None:
    source = write(tmp_path / "source", 2 * blobs.CHUNK_BYTES)
    sha256, size = blobs.put_file(store, source)
    with store.write() as session:  # as if the last transaction had not happened
        session.execute(update(Blob).values(complete=False))
    assert blobs.put_file(store, source) == (sha256, size)
    assert b"".join(blobs.open_reader(store, sha256)) == source.read_bytes()


def test_a_put_that_was_swept_meanwhile_fails(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "source", 2 * blobs.CHUNK_BYTES)
    add_chunk = blobs._add_chunk

    def sweep_between(store: Store, sha256: str, position: int, data: bytes) -> None:
        add_chunk(store, sha256, position, data)
        blobs.sweep(store, older_than=NONE)

    monkeypatch.setattr(blobs, "_add_chunk", sweep_between)
    with pytest.raises(blobs.BlobError, match="swept"):
        blobs.put_file(store, source)


def test_a_blob_from_before_the_clock_was_put_back_is_not_kept_for_that(
    store: Store, tmp_path: Path
) -> None:
    blobs.put_file(store, write(tmp_path / "source", 10))
    with store.write() as session:
        session.execute(update(Blob).values(created_at=datetime.now(UTC) + 5 * HOUR))
    assert blobs.sweep(store, older_than=HOUR) == 0  # it may still be in use
    assert blobs.sweep(store, older_than=NONE) == 1


def test_a_sweep_leaves_what_is_needed_and_what_is_new(store: Store, tmp_path: Path) -> None:
    dataset_id = make_dataset(store, tmp_path, b"log")
    checkpoint = put(store, tmp_path / "a", b"checkpoint")
    artifact = put(store, tmp_path / "b", b"artifact")
    forgotten = put(store, tmp_path / "c", b"forgotten")
    new = put(store, tmp_path / "d", b"new")
    lease = claim(store, make_job(store, dataset_id))
    done = claim(store, make_job(store, dataset_id))
    with store.write() as session:
        assert jobs.set_checkpoint(session, lease, checkpoint, NOW)
        stored = jobs.StoredArtifact("a", "text/plain", 8, artifact)
        assert jobs.succeed(session, done, artifacts=[stored], metrics={}, now=NOW)
        session.execute(
            update(Blob).where(Blob.sha256 != new).values(created_at=datetime.now(UTC) - 2 * HOUR)
        )
    assert blobs.sweep(store, older_than=HOUR) == 1
    with pytest.raises(blobs.BlobError):
        blobs.open_reader(store, forgotten)
    # Putting what is there already makes it young again: somebody is about to refer to it.
    with store.write() as session:
        jobs.give_up_attempt(session, lease, error={}, permanent=True, now=NOW)
    assert put(store, tmp_path / "a", b"checkpoint") == checkpoint
    assert blobs.sweep(store, older_than=HOUR) == 0
    assert blobs.sweep(store, older_than=NONE) == 2  # `checkpoint` and `new`
    assert count(store, Blob) == 2  # the log and the artifact

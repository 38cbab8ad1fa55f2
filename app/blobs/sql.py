"""Bytes in SQL, in chunks of 1 MiB, named by their sha256.

A blob is written in short transactions and shows only when it is complete. Every one of them first
touches the blob's row: that is the lock that keeps two writers of the same bytes, and a sweep, from
getting into each other's way, and it makes the row young, which is what a sweep goes by.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from sqlalchemy import and_, delete, exists, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.store.engine import Store, database_now, insert_into
from app.store.models import Artifact, Blob, BlobChunk, Dataset, Job

CHUNK_BYTES = 1024 * 1024

logger = logging.getLogger(__name__)


class BlobError(Exception):
    """Stored bytes that are missing or damaged, or could not be stored."""


def put_file(store: Store, path: Path) -> tuple[str, int]:
    """Store a file's bytes unless they are there; returns their sha256 and how many they are.

    Refer to them soon: bytes that nothing refers to are swept after a while.

    Raises:
        BlobError: the file changed meanwhile, or storing took so long that a sweep came between.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
        if _start(store, sha256, size):
            return sha256, size
        file.seek(0)
        written = hashlib.sha256()
        position = 0
        while chunk := file.read(CHUNK_BYTES):
            written.update(chunk)
            _add_chunk(store, sha256, position, chunk)
            position += 1
    if written.hexdigest() != sha256:
        raise BlobError(f"{path} changed while it was stored")
    _finish(store, sha256, size, chunks=position)
    return sha256, size


def open_reader(
    store: Store, sha256: str, *, start: int = 0, stop: int | None = None
) -> Iterator[bytes]:
    """The bytes from `start` to before `stop` (None: the end), a chunk or less at a time.

    Chunks outside of that are not read. No connection is held between chunks, however slow the
    reader is.

    Raises:
        BlobError: nothing (complete) is stored under this name; while reading: it was swept.
    """
    with store.read() as session:
        size = session.scalar(select(Blob.bytes).where(Blob.sha256 == sha256, Blob.complete))
    if size is None:
        raise BlobError(f"no blob {sha256}")
    return _chunks(store, sha256, start, size if stop is None else min(stop, size))


def get_to_file(store: Store, sha256: str, path: Path) -> None:
    """Write the bytes to `path`, which appears complete or not at all.

    Raises:
        BlobError: they are missing, or are not what their name says.
    """
    chunks = open_reader(store, sha256)
    digest = hashlib.sha256()
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".blob-")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != sha256:
            raise BlobError(f"blob {sha256} is damaged: its bytes hash to {digest.hexdigest()}")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(store: Store, *, older_than: timedelta) -> int:
    """Delete blobs that nothing refers to and nobody put for `older_than`; returns how many."""
    with store.read() as session:
        now = database_now(session)
        unneeded = and_(
            Blob.created_at < now - older_than,
            ~exists().where(Dataset.fingerprint == Blob.sha256),
            ~exists().where(Job.checkpoint_sha256 == Blob.sha256),
            ~exists().where(Artifact.sha256 == Blob.sha256),
        )
        found = session.scalars(select(Blob.sha256).where(unneeded)).all()
        from_the_future = Blob.created_at > now + older_than
        misdated = session.scalars(select(Blob.sha256).where(from_the_future)).all()
    if misdated:  # the clock was put back since: they would be young until that time came again
        with store.write() as session:
            session.execute(update(Blob).where(from_the_future).values(created_at=now))
    swept = 0
    for sha256 in found:
        try:
            with store.write() as session:
                # Chunks go with their blob. The condition again: it may be needed by now.
                gone = session.scalar(
                    delete(Blob)
                    .where(Blob.sha256 == sha256, unneeded)
                    .returning(Blob.sha256)
                    .execution_options(synchronize_session=False)
                )
                swept += gone is not None
        except IntegrityError:
            logger.info("blob %s was referred to while it was swept: kept", sha256)
    return swept


def _start(store: Store, sha256: str, size: int) -> bool:
    """Make the blob's row, or make it young. True when its bytes are all there."""
    with store.write() as session:
        statement = insert_into(session, Blob).values(
            sha256=sha256, bytes=size, complete=False, created_at=database_now(session)
        )
        return session.execute(
            statement.on_conflict_do_update(
                index_elements=[Blob.sha256], set_={"created_at": statement.excluded.created_at}
            ).returning(Blob.complete)
        ).scalar_one()


def _add_chunk(store: Store, sha256: str, position: int, data: bytes) -> None:
    with store.write() as session:
        _touch(session, sha256)
        known = select(BlobChunk.position).where(
            BlobChunk.sha256 == sha256, BlobChunk.position == position
        )
        # Left by an interrupted writer, or by one that is storing the same bytes at this moment.
        if session.scalar(known) is None:
            session.add(BlobChunk(sha256=sha256, position=position, data=data))


def _finish(store: Store, sha256: str, size: int, *, chunks: int) -> None:
    with store.write() as session:
        _touch(session, sha256)
        count, total = session.execute(
            select(func.count(), func.coalesce(func.sum(func.length(BlobChunk.data)), 0)).where(
                BlobChunk.sha256 == sha256
            )
        ).one()
        if (count, total) != (chunks, size):
            raise BlobError(
                f"blob {sha256}: {count} chunks with {total} of {size} bytes were stored"
            )
        session.execute(update(Blob).where(Blob.sha256 == sha256).values(complete=True))


def _touch(session: Session, sha256: str) -> None:
    statement = (
        update(Blob)
        .where(Blob.sha256 == sha256)
        .values(created_at=database_now(session))
        .returning(Blob.sha256)
        .execution_options(synchronize_session=False)
    )
    if session.scalar(statement) is None:
        raise BlobError(f"blob {sha256} was swept while it was stored")


def _chunks(store: Store, sha256: str, start: int, stop: int) -> Iterator[bytes]:
    for position in range(start // CHUNK_BYTES, -(-stop // CHUNK_BYTES)):
        with store.read() as session:
            data = session.scalar(
                select(BlobChunk.data).where(
                    BlobChunk.sha256 == sha256, BlobChunk.position == position
                )
            )
        if data is None:
            raise BlobError(f"blob {sha256} was swept while it was read")
        offset = position * CHUNK_BYTES
        yield data[max(start - offset, 0) : stop - offset]

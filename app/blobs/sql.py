"""A blob store in the database: chunks of 1 MiB, written in short transactions."""

import hashlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from sqlalchemy import func, select

from app.blobs import rows
from app.blobs.protocol import BlobError, StoredBlob
from app.store.engine import Store
from app.store.models import BlobChunk

CHUNK_BYTES = 1024 * 1024


class SqlBlobStore:
    """Implements `BlobStore` with the tables `blobs` and `blob_chunks` of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def check(self) -> None:
        """See `BlobStore.check`."""
        with self._store.read() as session:
            session.execute(select(BlobChunk.position).limit(1))

    def put_file(self, path: Path) -> StoredBlob:
        """See `BlobStore.put_file`."""
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
            if rows.begin_put(self._store, sha256, size):
                return StoredBlob(sha256, size)
            file.seek(0)
            digest = hashlib.sha256()
            position = 0
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                self.put_chunk(sha256, position, chunk)
                position += 1
        if digest.hexdigest() != sha256:
            raise BlobError(f"{path} changed while it was stored")
        self._finish_put(sha256, size, chunks=position)
        return StoredBlob(sha256, size)

    def put_chunk(self, sha256: str, position: int, data: bytes) -> None:
        """Store one chunk of a put that has begun, in a transaction of its own.

        Raises:
            BlobError: a sweep deleted the blob.
            StorageUnavailableError: the database does not answer.
        """
        with self._store.write() as session:
            rows.touch(session, sha256)
            stored = select(BlobChunk.position).where(
                BlobChunk.sha256 == sha256, BlobChunk.position == position
            )
            # An interrupted writer, or a concurrent one of the same bytes, may have stored it.
            if session.scalar(stored) is None:
                session.add(BlobChunk(sha256=sha256, position=position, data=data))

    def open_reader(
        self, sha256: str, *, start: int = 0, stop: int | None = None
    ) -> Iterator[bytes]:
        """See `BlobStore.open_reader`. Chunks outside the range are not read."""
        size = rows.size_of(self._store, sha256)
        return self._read_chunks(sha256, start, size if stop is None else min(stop, size))

    def sweep(self, *, older_than: timedelta) -> int:
        """See `BlobStore.sweep`. Chunks are deleted with their blob's row (ON DELETE CASCADE)."""
        return len(rows.sweep(self._store, older_than=older_than))

    def _finish_put(self, sha256: str, size: int, *, chunks: int) -> None:
        with self._store.write() as session:
            rows.touch(session, sha256)
            count, total = session.execute(
                select(func.count(), func.coalesce(func.sum(func.length(BlobChunk.data)), 0)).where(
                    BlobChunk.sha256 == sha256
                )
            ).one()
            if (count, total) != (chunks, size):
                raise BlobError(
                    f"blob {sha256}: {count} chunks with {total} of {size} bytes were stored"
                )
            rows.mark_complete(session, sha256)

    def _read_chunks(self, sha256: str, start: int, stop: int) -> Iterator[bytes]:
        for position in range(start // CHUNK_BYTES, -(-stop // CHUNK_BYTES)):
            with self._store.read() as session:
                data = session.scalar(
                    select(BlobChunk.data).where(
                        BlobChunk.sha256 == sha256, BlobChunk.position == position
                    )
                )
            if data is None:
                raise BlobError(f"blob {sha256} was swept while it was read")
            offset = position * CHUNK_BYTES
            yield data[max(start - offset, 0) : stop - offset]

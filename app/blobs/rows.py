"""The table `blobs`: which blobs exist, how old they are, and which of them nothing refers to.

Every blob store keeps its blobs' rows here, wherever the bytes are, because datasets, checkpoints
and artifacts refer to the rows by foreign keys.

Each transaction of a put touches the blob's row first. The row lock serialises writers of the same
bytes and a sweep, and the touch makes the row young.
"""

import logging
from datetime import timedelta

from sqlalchemy import and_, delete, exists, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.blobs.protocol import BlobError
from app.store.engine import Store, database_now, insert_into
from app.store.models import Artifact, Blob, Dataset, Job

logger = logging.getLogger(__name__)


def begin_put(store: Store, sha256: str, size: int) -> bool:
    """Create the blob's row, or make it young. Returns whether the blob is complete already."""
    with store.write() as session:
        statement = insert_into(session, Blob).values(
            sha256=sha256, bytes=size, complete=False, created_at=database_now(session)
        )
        return session.execute(
            statement.on_conflict_do_update(
                index_elements=[Blob.sha256], set_={"created_at": statement.excluded.created_at}
            ).returning(Blob.complete)
        ).scalar_one()


def touch(session: Session, sha256: str) -> None:
    """Lock the blob's row until the transaction ends, and make it young.

    Raises:
        BlobError: a sweep deleted it.
    """
    statement = (
        update(Blob)
        .where(Blob.sha256 == sha256)
        .values(created_at=database_now(session))
        .returning(Blob.sha256)
        .execution_options(synchronize_session=False)
    )
    if session.scalar(statement) is None:
        raise BlobError(f"blob {sha256} was swept while it was stored")


def mark_complete(session: Session, sha256: str) -> None:
    """Make the blob visible to readers, in the transaction that verified its bytes."""
    session.execute(update(Blob).where(Blob.sha256 == sha256).values(complete=True))


def size_of(store: Store, sha256: str) -> int:
    """The size of a complete blob, in bytes.

    Raises:
        BlobError: there is no complete blob of this name.
    """
    with store.read() as session:
        size = session.scalar(select(Blob.bytes).where(Blob.sha256 == sha256, Blob.complete))
    if size is None:
        raise BlobError(f"no blob {sha256}")
    return size


def sweep(store: Store, *, older_than: timedelta) -> list[str]:
    """Delete the rows of blobs that nothing refers to and that are older than `older_than`.

    Returns:
        The names of the deleted blobs.
    """
    with store.read() as session:
        now = database_now(session)
        unreferenced = and_(
            Blob.created_at < now - older_than,
            ~exists().where(Dataset.fingerprint == Blob.sha256),
            ~exists().where(Job.checkpoint_sha256 == Blob.sha256),
            ~exists().where(Artifact.sha256 == Blob.sha256),
        )
        candidates = session.scalars(select(Blob.sha256).where(unreferenced)).all()
        from_the_future = Blob.created_at > now + older_than
        misdated = session.scalars(select(Blob.sha256).where(from_the_future)).all()
    if misdated:  # the clock was set back: these would stay young until that time came again
        with store.write() as session:
            session.execute(update(Blob).where(from_the_future).values(created_at=now))
    swept = []
    for sha256 in candidates:
        try:
            with store.write() as session:
                # The condition is repeated: something may refer to the blob by now.
                deleted = session.scalar(
                    delete(Blob)
                    .where(Blob.sha256 == sha256, unreferenced)
                    .returning(Blob.sha256)
                    .execution_options(synchronize_session=False)
                )
        except IntegrityError:
            logger.info("blob %s was referred to while it was swept: kept", sha256)
            continue
        if deleted is not None:
            swept.append(sha256)
    return swept

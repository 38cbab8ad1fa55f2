"""The parts of a running service, which routes get as a dependency."""

import asyncio
import threading
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry

from app.blobs.protocol import BlobStore
from app.broker import JobQueue
from app.http.auth import Authenticator
from app.http.job_views import JobSnapshots
from app.http.readiness import ReadinessChecks
from app.http.upload_folders import UploadFolders
from app.settings import Settings
from app.store.engine import Store


@dataclass(frozen=True, kw_only=True)
class Context:
    """The parts of a running service; made once, in app.main.

    Attributes:
        normalising: limits how many uploads are normalised at once, because each may take
            `normalise_memory_bytes`.
        snapshots: the answers to polls.
        stopping: set when the server begins to stop. Requests that wait then answer at once.
        registry: the metrics that `/metrics` serves.
    """

    settings: Settings
    store: Store
    blobs: BlobStore
    queue: JobQueue
    uploads: UploadFolders
    normalising: asyncio.Semaphore
    authenticator: Authenticator
    snapshots: JobSnapshots
    stopping: threading.Event
    readiness: ReadinessChecks
    registry: CollectorRegistry


def context_of(request: Request) -> Context:
    """The parts of the service that serves this request."""
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


async def _context(request: Request) -> Context:
    return context_of(request)


ContextDep = Annotated[Context, Depends(_context)]

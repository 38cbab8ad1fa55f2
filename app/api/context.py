"""What every resource needs: the parts of the service, and a few rules of HTTP."""

import asyncio
import threading
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry

from app.errors import PROBLEM_MEDIA_TYPE, field_error
from app.queue import JobQueue
from app.settings import Settings
from app.store.engine import Store
from app.uploads import UploadFolders


@dataclass(frozen=True)
class Context:
    """The parts of a running service; made once, in app.main."""

    settings: Settings
    store: Store
    queue: JobQueue
    uploads: UploadFolders
    # Readers of uploads at once: each may take `normalise_memory_bytes`.
    normalising: asyncio.Semaphore
    # Set when the server was told to stop: who waits for something answers then.
    stopping: threading.Event
    registry: CollectorRegistry  # what Prometheus is told


async def _context(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


ContextDep = Annotated[Context, Depends(_context)]
Limit = Annotated[int, Query(ge=1, le=100, description="Most items to return.")]
After = Annotated[
    str | None,
    Query(max_length=100, pattern=r"^\w+$", description="Return what follows the item of this id."),
]


async def refuse_unknown_query(request: Request) -> None:
    """Dependency of every route: a query parameter that nobody reads is a mistake worth telling."""
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    known = {field.alias for field in route.dependant.query_params}
    for name in request.query_params:
        if name not in known:
            raise field_error(name[:100], "extra_forbidden", "There is no such query parameter")


def problems(**meanings: str) -> dict[int | str, dict[str, Any]]:
    """The problem answers of a route, for OpenAPI: `problems(_404="No such job.")`."""
    return {
        status.removeprefix("_"): {
            "description": meaning,
            "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, meaning in meanings.items()
    }


def multipart_body(properties: dict[str, Any], *, required: list[str]) -> dict[str, Any]:
    """Media type object of a form, for OpenAPI: we parse forms ourselves."""
    return {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": properties, "required": required}
        }
    }

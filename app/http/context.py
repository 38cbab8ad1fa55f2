"""What every resource needs: the parts of the service, and a few rules of HTTP."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry

from app.broker import JobQueue
from app.http.auth import Doorkeeper
from app.http.job_views import JobSights
from app.http.problems import PROBLEM_MEDIA_TYPE, field_error
from app.http.readiness import ReadinessChecks
from app.http.uploads import UploadFolders
from app.settings import Settings
from app.store.engine import Store


@dataclass(frozen=True)
class Context:
    """The parts of a running service; made once, in app.main."""

    settings: Settings
    store: Store
    queue: JobQueue
    uploads: UploadFolders
    # Readers of uploads at once: each may take `normalise_memory_bytes`.
    normalising: asyncio.Semaphore
    doorkeeper: Doorkeeper
    sights: JobSights  # what polls see
    # Set when the server was told to stop: who waits for something answers then.
    stopping: threading.Event
    readiness: ReadinessChecks
    registry: CollectorRegistry  # what Prometheus is told


def context_of(request: Request) -> Context:
    """The parts of the service that serves this request."""
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


async def _context(request: Request) -> Context:
    return context_of(request)


ContextDep = Annotated[Context, Depends(_context)]
Limit = Annotated[int, Query(ge=1, le=100, description="Most items to return.")]
After = Annotated[
    str | None,
    Query(max_length=100, pattern=r"^\w+$", description="Return what follows the item of this id."),
]


class StrictRoute(APIRoute):
    """A route that refuses query parameters which nobody reads, because they are unknown or there
    twice: such a mistake is worth telling.

    Not a dependency: FastAPI takes longer to resolve one than to run it, at each request.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, behind that check."""
        handle = super().get_route_handler()
        known = {field.alias for field in self.dependant.query_params}

        async def refuse_or_handle(request: Request) -> Response:
            if request.scope["query_string"]:
                seen = set()
                for name, _ in request.query_params.multi_items():
                    if name not in known:
                        message = "There is no such query parameter"
                        raise field_error(name[:100], "extra_forbidden", message)
                    if name in seen:
                        raise field_error(name, "duplicate", "The query parameter is there twice")
                    seen.add(name)
            return await handle(request)

        return refuse_or_handle


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

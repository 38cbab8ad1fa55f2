"""The API: `uvicorn app.main:app`, or `create_app(settings)` for tests and other servers."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from types import FrameType
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from app.broker import JobQueue
from app.http.access_log import Observe
from app.http.auth import PUBLIC_PATHS, Doorkeeper, install_authentication
from app.http.context import Context, problems
from app.http.job_views import JobSights
from app.http.metrics import HttpMetrics, StoreCollector, process_registry
from app.http.problems import install_error_handlers
from app.http.readiness import ReadinessChecks
from app.http.routes import artifacts, datasets, events, health, jobs, keys, submissions, usage
from app.http.schemas.jobs import JobRequest, JobSettings
from app.http.schemas.keys import KeyRequest
from app.http.schemas.problems import Problem
from app.http.uploads import UploadFolders, upload_limits
from app.logs import set_up_logging
from app.settings import Settings, get_settings
from app.store.engine import open_store
from app.store.quotas import quotas_for
from td3engine.config import DistillConfig

DESCRIPTION = """\
Distils an interaction log into a small synthetic summary that trains a sequential recommender
nearly as well as the whole log does.

1. `POST /datasets` uploads a log, `POST /jobs` starts to distil it (or both in one call).
2. `GET /jobs/{id}` with `Prefer: wait=60`, or `GET /jobs/{id}/events` as server-sent events, tells
   how far it is.
3. `GET /jobs/{id}/summary` is the result.

Every error is `application/problem+json` (RFC 9457) with a stable `code`.
"""
TAGS = [
    {"name": "datasets", "description": "Interaction logs, checked and normalised."},
    {"name": "jobs", "description": "Distillations: create, watch, cancel."},
    {"name": "artifacts", "description": "What a job made."},
    {"name": "usage", "description": "What your tenant has, of what it may have."},
    {"name": "keys", "description": "API keys of your tenant; for keys of scope `admin`."},
    {"name": "health", "description": "For supervisors, load balancers and Prometheus."},
]
_KEY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "td3_…",
    "description": "An API key (`td3 keys create`). A service without keys, which answers requests "
    "from its own machine only, needs none.",
}
# Documented, but not the model of any route's parameter: we parse these bodies ourselves.
_EXTRA_SCHEMAS = (DistillConfig, JobRequest, JobSettings, KeyRequest, Problem)
_READERS_AT_ONCE = 2


def create_app(settings: Settings) -> FastAPI:
    """The API over the database, the broker and the folder that the settings name.

    Nothing is opened before the application starts (its lifespan), and all is closed when it stops.

    Raises:
        pydantic.ValidationError: the setting `upload_limits` or `quotas` is wrong.
    """

    upload_limits(settings)  # a wrong limit is better told now than at the first upload
    quotas_for(settings, None)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = open_store(settings.database_url)
        registry.register(StoreCollector(store))
        queue = JobQueue(settings.broker_url)
        uploads = UploadFolders(settings.data_dir / "uploads")
        try:
            with uploads.in_use(), _set_when_told_to_stop() as stopping:
                app.state.doorkeeper = doorkeeper = Doorkeeper(settings, store)
                app.state.context = Context(
                    settings,
                    store,
                    queue,
                    uploads,
                    normalising=asyncio.Semaphore(_READERS_AT_ONCE),
                    doorkeeper=doorkeeper,
                    sights=JobSights(store),
                    stopping=stopping,
                    readiness=ReadinessChecks(settings, store, queue),
                    registry=registry,
                )
                yield
        finally:
            queue.close()
            store.close()

    registry = process_registry()
    app = FastAPI(
        title="TD3: dataset distillation for sequential recommendation",
        version=version("td3engine"),
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=lifespan,
        responses=problems(
            _401="`key_required`, `key_invalid`, `key_expired` or `key_revoked`.",
            _403="`insufficient_scope`: the key may not do this.",
            _429="`rate_limited`, `storage_full`, `too_many_active_jobs` or `too_many_jobs`: see "
            "`Retry-After`.",
            _422="`validation_error`: `errors` names each field.",
            _500="`internal_error`: our fault; logged under `request_id`.",
            _503="`database_unavailable` or `disk_full`: try again after `Retry-After` seconds.",
        ),
        redirect_slashes=False,
    )
    install_authentication(app)  # within what gives every answer its request id
    install_error_handlers(app)
    app.add_middleware(Observe, metrics=HttpMetrics(registry))  # the last one added is outermost
    # Looked through in this order at each request: what is polled comes first.
    for resource in (jobs, datasets, submissions, events, artifacts, keys, usage, health):
        app.include_router(resource.router)
    _document_extra_schemas(app)
    return app


@contextmanager
def _set_when_told_to_stop() -> Iterator[threading.Event]:
    """An event that the signals to stop set, before the server's own handlers act on them.

    The server waits for open requests and tells them nothing, so event streams and waits would hold
    up every stop until they are cancelled.
    """
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping  # embedded, in a test for example: signals are not ours
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, frame: FrameType | None) -> None:
        stopping.set()
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number, handler in before.items():
        if callable(handler):  # otherwise the default action ends the process at once anyway
            signal.signal(number, on_signal)
    yield stopping
    for number, handler in before.items():
        signal.signal(number, handler)


def _document_extra_schemas(app: FastAPI) -> None:
    """Put the schemas that routes refer to by name into the OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            _, extra = models_json_schema(
                [(model, "validation") for model in _EXTRA_SCHEMAS],
                ref_template="#/components/schemas/{model}",
            )
            schemas = schema["components"]["schemas"]
            schemas.update(extra["$defs"])
            schema["components"]["securitySchemes"] = {"key": _KEY_SCHEME}
            schema["security"] = [{"key": []}]
            for path in PUBLIC_PATHS & schema["paths"].keys():
                for operation in schema["paths"][path].values():
                    operation["security"] = []
                    for status in ("401", "403", "429"):
                        del operation["responses"][status]
            schemas["Job"]["properties"]["config"] = {"$ref": "#/components/schemas/DistillConfig"}
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]


def __getattr__(name: str) -> FastAPI:
    """`app`, when a server asks for it: reads the environment and sets up the process's logging.

    Raises:
        AttributeError: it is something else that this module does not have.
    """
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    settings = get_settings()
    set_up_logging(settings.log_format)
    return create_app(settings)

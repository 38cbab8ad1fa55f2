"""The API: `uvicorn app.main:app`, or `create_app(settings)` for tests and other servers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from pydantic import ValidationError

from app.blobs.registry import check_blobs_setting, open_blob_store
from app.broker import JobQueue
from app.http.access_log import AccessLog
from app.http.auth import Authenticator, install_authentication
from app.http.context import Context
from app.http.early_answers import EarlyAnswers
from app.http.job_views import JobSnapshots
from app.http.metrics import HttpMetrics, StoreCollector, process_registry
from app.http.normaliser import upload_limits
from app.http.openapi import COMMON_PROBLEMS, DESCRIPTION, TAGS, TITLE, complete_document
from app.http.problems import install_error_handlers
from app.http.readiness import ReadinessChecks
from app.http.routes import artifacts, datasets, events, health, jobs, keys, submissions, usage
from app.http.shutdown import stop_event
from app.http.upload_folders import UploadFolders
from app.settings import Settings, SettingsError, settings_error
from app.startup import refuse_settings, start
from app.store.engine import open_store
from app.store.quotas import quotas_for

_CONCURRENT_NORMALISERS = 2


def create_app(settings: Settings) -> FastAPI:
    """The API over the database, the broker and the folder that the settings name.

    They are opened when the application starts (its lifespan) and closed when it stops.

    Raises:
        SettingsError: a setting cannot be used.
    """
    check_settings(settings)
    registry = process_registry()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = open_store(settings.database_url)
        registry.register(StoreCollector(store))
        queue = JobQueue(settings.broker_url)
        uploads = UploadFolders(settings.data_dir / "uploads")
        try:
            with uploads.in_use(), stop_event() as stopping:
                app.state.authenticator = authenticator = Authenticator(settings, store)
                blobs = open_blob_store(settings, store)
                app.state.context = Context(
                    settings=settings,
                    store=store,
                    blobs=blobs,
                    queue=queue,
                    uploads=uploads,
                    normalising=asyncio.Semaphore(_CONCURRENT_NORMALISERS),
                    authenticator=authenticator,
                    snapshots=JobSnapshots(store),
                    stopping=stopping,
                    readiness=ReadinessChecks(settings, store, blobs, queue),
                    registry=registry,
                )
                yield
        finally:
            queue.close()
            store.close()

    app = FastAPI(
        title=TITLE,
        version=version("td3engine"),
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=lifespan,
        responses=COMMON_PROBLEMS,
        redirect_slashes=False,
    )
    # The middleware that is added last is outermost: its answers include those of the others.
    install_authentication(app)
    install_error_handlers(app)
    app.add_middleware(EarlyAnswers)
    app.add_middleware(AccessLog, metrics=HttpMetrics(registry))
    # Routes are matched in this order at each request, so those that clients poll come first.
    for resource in (jobs, datasets, submissions, events, artifacts, keys, usage, health):
        app.include_router(resource.router)
    complete_document(app)
    return app


def check_settings(settings: Settings) -> None:
    """Check what settings name or contain: that should fail at the start, not at an upload.

    Raises:
        SettingsError: the setting `blobs`, `upload_limits` or `quotas` cannot be used.
    """
    check_blobs_setting(settings)
    for name, check in (
        ("upload_limits", lambda: upload_limits(settings)),
        ("quotas", lambda: quotas_for(settings, None)),
    ):
        try:
            check()
        except ValidationError as error:
            raise settings_error(error, below=name) from error


def __getattr__(name: str) -> FastAPI:
    """`app`, made from the environment when a server asks for it; also sets up logging.

    Raises:
        AttributeError: this module has no such attribute.
        SystemExit: a setting cannot be used.
    """
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    settings = start()
    try:
        return create_app(settings)
    except SettingsError as error:
        refuse_settings(error)

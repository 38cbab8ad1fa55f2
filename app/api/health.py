"""Is the process alive, can it serve, and what Prometheus is told."""

import shutil
from functools import cache
from pathlib import Path

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from fastapi import APIRouter, Response
from kombu.exceptions import OperationalError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import SQLAlchemyError

from app.api.context import Context, ContextDep
from app.schemas.health import Health, Readiness
from app.store.engine import Store
from app.store.migrate import alembic_config

router = APIRouter(tags=["health"])
_OK = "ok"


@router.get("/healthz", operation_id="getHealth")
async def get_health() -> Health:
    """The process is alive. Looks at nothing else: restarting it mends no database."""
    return Health()


@router.get(
    "/readyz",
    operation_id="getReadiness",
    responses={503: {"model": Readiness, "description": "Not ready; `checks` says why."}},
)
def get_readiness(response: Response, context: ContextDep) -> Readiness:
    """Whether the database answers and has the tables of this release, the broker answers, and
    there is room for uploads.
    """
    checks = {
        **_check_database(context.store),
        "broker": _check_broker(context),
        "disk": _check_disk(context.settings.data_dir, context.settings.ready_free_bytes),
    }
    ready = all(result == _OK for result in checks.values())
    if not ready:
        response.status_code = 503
    return Readiness(ready=ready, checks=checks)


@router.get(
    "/metrics",
    operation_id="getMetrics",
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus' text format.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    },
)
def get_metrics(context: ContextDep) -> Response:
    """What this process has served, and the state of the store."""
    return Response(generate_latest(context.registry), media_type=CONTENT_TYPE_LATEST)


def _check_database(store: Store) -> dict[str, str]:
    try:
        with store.read() as session:
            connection = session.connection()
            here = MigrationContext.configure(connection).get_current_revision()
            head = _head(store)
    except SQLAlchemyError as error:
        # The class only: the text may have the address and the user of the database.
        return {"database": f"does not answer: {type(error).__name__}", "migrations": "unknown"}
    if here == head:
        return {"database": _OK, "migrations": _OK}
    return {"database": _OK, "migrations": f"the tables are at {here}, this release needs {head}"}


@cache
def _head(store: Store) -> str | None:
    """Newest revision of this release; read from the files once."""
    with store.engine.connect() as connection:
        return ScriptDirectory.from_config(alembic_config(connection)).get_current_head()


def _check_broker(context: Context) -> str:
    try:
        context.queue.depth()
    except OperationalError as error:
        return f"does not answer: {type(error).__name__}"
    return _OK


def _check_disk(folder: Path, wanted: int) -> str:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"data_dir cannot be used: {error.strerror}"
    if free >= wanted:
        return _OK
    return f"{free // 2**20} MiB are free in data_dir, {wanted // 2**20} are wanted"

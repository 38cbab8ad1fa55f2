"""Liveness, readiness and metrics."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.http.auth import OperatorDep
from app.http.context import ContextDep
from app.http.routing import StrictRoute
from app.http.schemas.health import Health, Readiness
from app.readiness import OK

router = APIRouter(tags=["health"], route_class=StrictRoute)


@router.get("/healthz", operation_id="getHealth")
async def get_health() -> Health:
    """The process is alive. It checks nothing else, because a restart repairs no database."""
    return Health()


@router.get(
    "/readyz",
    operation_id="getReadiness",
    responses={503: {"model": Readiness, "description": "Not ready; `checks` says why."}},
)
async def get_readiness(response: Response, context: ContextDep) -> Readiness:
    """Whether the database answers and has the tables of this release, the blob store and the
    broker answer, and the disk has space for uploads. Answers within seconds, also if one hangs.
    """
    checks = await context.readiness.results()
    ready = all(result == OK for result in checks.values())
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
def get_metrics(context: ContextDep, _caller: OperatorDep) -> Response:
    """Counters of this process, and gauges of the store."""
    return Response(generate_latest(context.registry), media_type=CONTENT_TYPE_LATEST)

"""The caller's use of its quotas."""

from fastapi import APIRouter

from app.http.auth import CallerDep
from app.http.context import ContextDep
from app.http.routing import StrictRoute
from app.http.schemas.usage import Usage
from app.store import tenants
from app.store.models import TERMINAL
from app.store.quotas import find_quotas

router = APIRouter(tags=["usage"], route_class=StrictRoute)


@router.get("/usage", operation_id="getUsage")
def get_usage(context: ContextDep, caller: CallerDep) -> Usage:
    """Your tenant's current use, and its quotas."""
    with context.store.read() as session:
        current = tenants.usage(session, caller.tenant_id)
        quotas = find_quotas(session, context.settings, caller.tenant_id)
    return Usage(
        tenant=caller.tenant_id,
        datasets=current.datasets,
        jobs=current.jobs,
        active_jobs=sum(n for status, n in current.jobs.items() if status not in TERMINAL),
        kept_jobs=sum(current.jobs.values()),
        stored_bytes=current.stored_bytes,
        quotas=quotas,
    )

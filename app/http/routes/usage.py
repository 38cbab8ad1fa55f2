"""What the caller's tenant uses, of what it may use."""

from fastapi import APIRouter

from app.http.auth import CallerDep
from app.http.context import ContextDep, StrictRoute
from app.http.schemas.usage import Usage
from app.store import tenants
from app.store.models import TERMINAL
from app.store.quotas import find_quotas

router = APIRouter(tags=["usage"], route_class=StrictRoute)


@router.get("/usage", operation_id="getUsage")
def get_usage(context: ContextDep, caller: CallerDep) -> Usage:
    """What your tenant has at this moment, and its quotas."""
    with context.store.read() as session:
        found = tenants.usage(session, caller.tenant_id)
        quotas = find_quotas(session, context.settings, caller.tenant_id)
    return Usage(
        tenant=caller.tenant_id,
        datasets=found.datasets,
        jobs=found.jobs,
        active_jobs=sum(n for status, n in found.jobs.items() if status not in TERMINAL),
        kept_jobs=sum(found.jobs.values()),
        stored_bytes=found.stored_bytes,
        quotas=quotas,
    )

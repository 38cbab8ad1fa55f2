"""Who asks. What a client may see is what its tenant owns."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends

from app.store.models import DEFAULT_TENANT


@dataclass(frozen=True)
class Caller:
    """On whose behalf a request is served."""

    tenant_id: str


async def _caller() -> Caller:
    return Caller(DEFAULT_TENANT)


CallerDep = Annotated[Caller, Depends(_caller)]

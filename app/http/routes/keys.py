"""API keys of the caller's tenant: create, list, get, revoke. Needs the scope `admin`."""

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from app.api_keys import issue
from app.http.auth import AdminDep, Caller
from app.http.context import Context, ContextDep
from app.http.openapi import problem_responses
from app.http.problems import field_error, not_found
from app.http.request_body import BodyTimeouts, parse, read_json
from app.http.routing import After, Limit, StrictRoute
from app.http.schemas.common import Page
from app.http.schemas.keys import Key, KeyRequest, NewKey
from app.store import keys

router = APIRouter(prefix="/keys", tags=["keys"], route_class=StrictRoute)


@router.post(
    "",
    status_code=201,
    operation_id="createKey",
    responses={
        201: {
            "description": "Made. The answer is the only one that has the key itself.",
            "headers": {"Location": {"schema": {"type": "string"}}},
        },
        **problem_responses(
            _400="`invalid_json`",
            _408="`body_stalled`: the client stopped sending; or `body_too_slow`.",
            _413="`too_large`",
            _415="`unsupported_media_type`",
        ),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/KeyRequest"}}
            },
        }
    },
)
async def create_key(
    request: Request, response: Response, context: ContextDep, caller: AdminDep
) -> NewKey:
    """Create a key of your own tenant."""
    body = await read_json(request, BodyTimeouts.from_settings(context.settings))
    new_key = await run_in_threadpool(_create, context, caller, parse(KeyRequest, body))
    response.headers["Cache-Control"] = "no-store"
    response.headers["Location"] = f"/keys/{new_key.id}"
    return new_key


def _create(context: Context, caller: Caller, key_request: KeyRequest) -> NewKey:
    if key_request.expires_at is not None and key_request.expires_at <= datetime.now(UTC):
        raise field_error("expires_at", "past", "It must be in the future")
    with context.store.write() as session:
        row, key = issue(
            session,
            context.settings,
            tenant_id=caller.tenant_id,
            name=key_request.name,
            scope=key_request.scope,
            expires_at=key_request.expires_at,
        )
    return NewKey(**Key.model_validate(row).model_dump(), key=key)


@router.get("", operation_id="listKeys")
def list_keys(
    context: ContextDep, caller: AdminDep, limit: Limit = 20, after: After = None
) -> Page[Key]:
    """Newest first, including revoked and expired keys."""
    with context.store.read() as session:
        page, has_more = keys.page(session, tenant_id=caller.tenant_id, limit=limit, after=after)
    return Page(data=[Key.model_validate(row) for row in page], has_more=has_more)


@router.get("/{key_id}", operation_id="getKey", responses=problem_responses(_404="`key_not_found`"))
def get_key(key_id: str, context: ContextDep, caller: AdminDep) -> Key:
    """One key."""
    with context.store.read() as session:
        row = (
            keys.get(session, key_id, tenant_id=caller.tenant_id) if key_id.isidentifier() else None
        )
    if row is None:
        raise not_found("key", key_id)
    return Key.model_validate(row)


@router.delete(
    "/{key_id}",
    status_code=204,
    operation_id="revokeKey",
    responses=problem_responses(_404="`key_not_found`"),
)
def revoke_key(key_id: str, context: ContextDep, caller: AdminDep) -> None:
    """Revoke a key, also the one that you use: its next request is refused. It stays in the list.
    Repeating the request changes nothing.
    """
    with context.store.write() as session:
        known = key_id.isidentifier() and keys.revoke(
            session, key_id, datetime.now(UTC), tenant_id=caller.tenant_id
        )
    if not known:
        raise not_found("key", key_id)

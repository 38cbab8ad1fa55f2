"""`Idempotency-Key` for routes: the parameter, its problems, and how a request is served once."""

from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Annotated, Any

from fastapi import Header, Request

from app.http.auth import Caller
from app.http.context import Context, problems
from app.http.idempotency import HEADER, Once, once

# Read by app/http/idempotency.py; here so that it is documented.
IdempotencyKeyHeader = Annotated[
    str | None,
    Header(
        alias=HEADER,
        description="Any text of yours, 1 to 255 printable ASCII characters. The same request "
        "under the same key is done once and answered alike, with `Idempotency-Replayed: true`.",
        examples=["5b8f6a0e-2f0c-4d0b-9d57-3f1f7c0f8d55"],
    ),
]
IDEMPOTENCY_PROBLEMS = problems(
    _409="`idempotency_key_in_use`: its request is being served, see `Retry-After`.",
)


def serve_once(
    request: Request, context: Context, caller: Caller, content: Any
) -> AbstractAsyncContextManager[Once]:
    """Serve this request once for its key; `content` is all of what was asked for, as JSON."""
    keep = timedelta(seconds=context.settings.idempotency_seconds)
    return once(request, context.store, caller.tenant_id, content, keep=keep)

"""Authentication: maps a request's API key to a `Caller` with a tenant and a scope.

Once the first API key exists, every request needs one. Before that, the service answers only direct
requests from its own machine: on a loopback address, and neither through a proxy nor from a web
page of another site.
"""

import hmac
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from fastapi import Depends, FastAPI, Request
from sqlalchemy import Row
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api_keys import digest, key_id_of, read_secret
from app.http.coalescing import BatchedLookup
from app.http.problems import ApiError, ServiceCode, problem_response
from app.http.rate_limit import RateLimiter
from app.http.route_path import route_path
from app.loopback import is_loopback
from app.settings import Settings
from app.store import keys
from app.store import models as rows
from app.store.engine import STORE_ERRORS, Store
from app.store.models import DEFAULT_TENANT, SCOPES
from app.store.quotas import quotas_for

# Paths that need no key: their answers contain no tenant's data.
PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_ADMIN_PATH = "/keys"
OPERATOR_PATHS = frozenset({"/metrics"})  # their answers concern all tenants
# Headers that proxies add. A proxied client is not on this machine, though the connection is local.
_PROXY_HEADERS = frozenset({"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"})
_USE_RESOLUTION = timedelta(minutes=10)  # of the column last_used_at
_NEVER = datetime.min.replace(tzinfo=UTC)
KEYS_LOOKUP_SECONDS = 1.0  # until the first key exists: how often it is looked for

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """On whose behalf a request is served; `key_id` is None for local requests without a key."""

    tenant_id: str
    scope: rows.Scope
    key_id: str | None = None

    def require(self, scope: rows.Scope) -> None:
        """Check that the caller has at least this scope.

        Raises:
            ApiError: 403 `insufficient_scope`.
        """
        if SCOPES.index(self.scope) >= SCOPES.index(scope):
            return
        who = "This key has" if self.key_id else "Without a key one has"
        raise ApiError(
            403,
            "insufficient_scope",
            f"{who} the scope {self.scope}; this needs {scope}.",
            headers={"WWW-Authenticate": _challenge(error="insufficient_scope", scope=scope)},
        )

    def require_operator(self) -> None:
        """Check that the caller may see what concerns all tenants.

        Raises:
            ApiError: 403 `insufficient_scope`.
        """
        if self.tenant_id != DEFAULT_TENANT:
            raise ApiError(
                403,
                "insufficient_scope",
                f"What concerns all tenants is for keys of the tenant {DEFAULT_TENANT!r}.",
            )


def caller_of(request: Request) -> Caller:
    """The caller that `Authentication` identified."""
    caller = request.scope["state"]["caller"]
    assert isinstance(caller, Caller)
    return caller


async def _caller(request: Request) -> Caller:
    return caller_of(request)


CallerDep = Annotated[Caller, Depends(_caller)]


async def _admin(caller: CallerDep) -> Caller:
    caller.require("admin")
    return caller


async def _operator(caller: CallerDep) -> Caller:
    caller.require_operator()
    return caller


# For routes that need more than their method implies. The middleware has checked this by the path;
# the second check does not depend on the middleware and the router parsing paths alike.
AdminDep = Annotated[Caller, Depends(_admin)]
OperatorDep = Annotated[Caller, Depends(_operator)]


class Authenticator:
    """Maps an API key to a `Caller`, and limits the rate of its tenant's requests.

    A key is looked up at each request, so revoking one works at once. Lookups and counts of
    concurrent requests are batched.

    Args:
        settings: of the service.
        store: has the keys.
        clock: the monotonic clock, for tests.
    """

    def __init__(
        self, settings: Settings, store: Store, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._store = store
        self._secret: bytes | None = None
        self._keys_exist = False  # once true, it stays true
        self._last_key_check = -math.inf
        self._recorded_use: dict[str, datetime] = {}  # last write of last_used_at, by key id
        self._key_checks: BatchedLookup[None, bool] = BatchedLookup(self._check_for_keys)
        self._rows: BatchedLookup[str, Row[Any] | None] = BatchedLookup(self._find_keys)
        self._waits = BatchedLookup(RateLimiter(settings.broker_url).wait_for)

    async def authenticate(self, method: str, path: str, headers: Headers, local: bool) -> Caller:
        """The caller of a request.

        Args:
            method: of the request.
            path: as the router sees it.
            headers: of the request.
            local: whether the request comes from a program on this machine.

        Raises:
            ApiError: 401 if the key is missing, unknown, revoked or expired; 403 if its scope is
                not enough; 429 `rate_limited`.
            StorageUnavailableError: the database does not answer.
        """
        key = _bearer(headers)
        if key is not None:
            caller = await self.caller_of_key(key)
        elif local and not await self.is_key_required(path):
            caller = Caller(DEFAULT_TENANT, "write")
        else:
            raise _unauthorized(
                "key_required",
                "Send an API key: Authorization: Bearer td3_… Without keys only requests from this "
                "machine are served (docs/operations.md).",
            )
        caller.require(required_scope(method, path))
        if path in OPERATOR_PATHS:
            caller.require_operator()
        return caller

    async def recheck(self, caller: Caller) -> None:
        """Check, during a long request, that its key is still valid.

        Raises:
            ApiError: 401.
        """
        if caller.key_id is not None:
            _valid_row(await self._rows.get(caller.key_id), datetime.now(UTC))

    async def caller_of_key(self, key: str) -> Caller:
        """The caller with this API key; counts the request.

        Raises:
            ApiError: 401 if the key is unknown, revoked or expired; 429 `rate_limited`.
        """
        key_id = key_id_of(key)
        if key_id is None:
            raise _unauthorized(
                "key_invalid", "This is not a key of this service, or not all of it."
            )
        row = await self._rows.get(key_id)
        # Unknown keys take the same time as known ones, so timing reveals no ids.
        if not hmac.compare_digest(digest(key, self._server_secret()), row.digest if row else ""):
            row = None
        now = datetime.now(UTC)
        row = _valid_row(row, now)
        if now - self._recorded_use.get(key_id, row.last_used_at or _NEVER) >= _USE_RESOLUTION:
            self._recorded_use[key_id] = now
            await run_in_threadpool(self._record_use, key_id, now)
        await self._count(row.tenant_id, quotas_for(self._settings, row.quotas).requests_per_minute)
        return Caller(row.tenant_id, row.scope, row.id)

    async def _count(self, tenant_id: str, per_minute: int) -> None:
        seconds = await self._waits.get((tenant_id, per_minute))
        if seconds:
            raise ApiError(
                429,
                "rate_limited",
                f"This tenant may send {per_minute} requests a minute.",
                headers={"Retry-After": str(seconds)},
            )

    def _find_keys(self, key_ids: Sequence[str]) -> list[Row[Any] | None]:
        with self._store.read() as session:
            rows_by_id = keys.find_all(session, set(key_ids))
        return [rows_by_id.get(key_id) for key_id in key_ids]

    def _server_secret(self) -> bytes:
        if self._secret is None:
            self._secret = read_secret(self._settings)
        if self._secret is None:
            logger.error("no secret: no API key can be recognised (TD3_KEY_SECRET, key.secret)")
            return b""
        return self._secret

    def _record_use(self, key_id: str, now: datetime) -> None:
        try:
            with self._store.write() as session:
                keys.mark_used(session, key_id, now)
        except STORE_ERRORS as error:  # no reason to refuse the request
            logger.warning("%s: use not recorded: %s", key_id, error)

    async def is_key_required(self, path: str) -> bool:
        """Whether a local request for this path needs a key, because there is one.

        Raises:
            StorageUnavailableError: the database does not answer. Paths for operators are open
                then, so that Prometheus sees the outage: their answers have no rows without it.
        """
        if self._keys_exist or self._clock() - self._last_key_check < KEYS_LOOKUP_SECONDS:
            return self._keys_exist
        try:
            self._keys_exist = await self._key_checks.get(None)
        except STORE_ERRORS:
            if path not in OPERATOR_PATHS:
                raise
            return False
        self._last_key_check = self._clock()
        return self._keys_exist

    def _check_for_keys(self, requests: Sequence[None]) -> list[bool]:
        with self._store.read() as session:
            return [keys.any_made(session)] * len(requests)


class Authentication:
    """ASGI middleware: refuses unauthenticated requests, except for public paths.

    It runs before routing and before the body is read, so strangers cannot even learn which paths
    exist.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http" or (path := route_path(scope)) in PUBLIC_PATHS:
            await self.app(scope, receive, send)
            return
        authenticator: Authenticator = scope["app"].state.authenticator
        headers = Headers(scope=scope)
        try:
            scope["state"]["caller"] = await authenticator.authenticate(
                scope["method"], path, headers, is_local(scope, headers)
            )
        except ApiError as error:
            await problem_response(scope, error)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def install_authentication(app: FastAPI) -> None:
    """Authenticate every request of `app`, except for public paths."""
    app.add_middleware(Authentication)


def is_local(scope: Mapping[str, object], headers: Headers) -> bool:
    """Whether a request comes from a program on this machine, and not from a proxy or a web page.

    A page of another site can make a browser on this machine send requests. Such a request has that
    site as its origin or, after DNS rebinding, as its host.
    """
    ends = [scope.get("server"), scope.get("client")]
    if not all(isinstance(end, list | tuple) and is_loopback(str(end[0])) for end in ends):
        return False
    host = headers.get("host", "")
    if not _names_loopback(host):
        return False
    origin = headers.get("origin")
    if origin is not None and _split(origin).netloc != host:
        return False
    return _PROXY_HEADERS.isdisjoint(headers.keys())


@lru_cache(maxsize=1000)
def _names_loopback(host: str) -> bool:
    return is_loopback(_split(f"//{host}").hostname or "")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", "")


def _valid_row(row: Row[Any] | None, now: datetime) -> Row[Any]:
    if row is None:
        raise _unauthorized("key_invalid", "There is no such key.")
    if row.revoked_at is not None:
        raise _unauthorized("key_revoked", f"The key {row.id} was revoked.")
    if row.expires_at is not None and row.expires_at <= now:
        raise _unauthorized("key_expired", f"The key {row.id} expired at {row.expires_at}.")
    return row


def required_scope(method: str, path: str) -> rows.Scope:
    """The scope that a request needs."""
    if path == _ADMIN_PATH or path.startswith(f"{_ADMIN_PATH}/"):
        return "admin"
    return "read" if method in _READING else "write"


def _bearer(headers: Headers) -> str | None:
    values = headers.getlist("authorization")
    if not values:
        return None
    scheme, _, key = values[0].partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer":
        raise _unauthorized(
            "key_invalid", "The header must be one, and say: Authorization: Bearer KEY"
        )
    return key.strip()


def _unauthorized(code: ServiceCode, detail: str) -> ApiError:
    challenge = _challenge() if code == "key_required" else _challenge(error="invalid_token")
    return ApiError(401, code, detail, headers={"WWW-Authenticate": challenge})


def _challenge(**parameters: str) -> str:
    """The value of WWW-Authenticate (RFC 6750, section 3)."""
    fields = {"realm": "td3", **parameters}
    return "Bearer " + ", ".join(f'{name}="{value}"' for name, value in fields.items())

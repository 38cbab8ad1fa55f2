"""Who asks, and what they may do. What a client may see is what its tenant owns.

With API keys every request needs one. Without any, the service is for the people of one machine:
it answers requests that come from it, on a loopback address, and not by way of a browser or proxy.
"""

import hmac
import ipaddress
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
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api_keys import digest, key_id_of, read_secret
from app.http.coalescing import Together
from app.http.problems import ApiError, ServiceCode, problem_response
from app.http.rate_limit import RateLimiter
from app.http.route_path import route_path
from app.settings import Settings
from app.store import keys
from app.store import models as rows
from app.store.engine import Store
from app.store.models import DEFAULT_TENANT, SCOPES
from app.store.quotas import quotas_for

# What anybody may ask: no row of anybody's is in the answer.
PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_ADMIN_PATH = "/keys"
_OPERATOR_PATHS = frozenset({"/metrics"})  # what tells of all tenants
# What proxies add. Whoever is behind one is not on this machine, whatever the connection says.
_FORWARDING = frozenset({"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"})
_USE_NOTED = timedelta(minutes=10)
_NEVER = datetime.min.replace(tzinfo=UTC)
_LOOK_SECONDS = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """On whose behalf a request is served; `key_id` is None for somebody on this machine."""

    tenant_id: str
    scope: rows.Scope
    key_id: str | None = None

    def require(self, scope: rows.Scope) -> None:
        """See that this much is allowed.

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
        """See that what concerns all tenants may be shown.

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
    """Whom `Authentication` recognised."""
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


# For routes that need more than the method says. The middleware has refused others already, by the
# path; a route that asks again does not depend on both of them reading paths alike.
AdminDep = Annotated[Caller, Depends(_admin)]
OperatorDep = Annotated[Caller, Depends(_operator)]


class Doorkeeper:
    """Recognises callers. A key is looked up at each request, so revoking one works at once; those
    of requests that come at the same time are looked up, and counted, together.
    """

    def __init__(
        self, settings: Settings, store: Store, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._store = store
        self._secret: bytes | None = None
        self._keys_exist = False  # once true for good
        self._looked = -math.inf
        self._noted: dict[str, datetime] = {}  # when a key's use was last written down
        self._looks: Together[None, bool] = Together(self._look_for_keys)
        self._rows: Together[str, Row[Any] | None] = Together(self._find_keys)
        self._waits = Together(RateLimiter(settings.broker_url).wait_for)

    async def admit(self, method: str, path: str, headers: Headers, local: bool) -> Caller:
        """Who this is; `path` is that of the route.

        Raises:
            ApiError: 401 where that is not known or not good (any more), 403 where it is not
                enough, 429 `rate_limited` where it is too much.
        """
        key = _bearer(headers)
        if key is not None:
            caller = await self._by_key(key)
        elif local and not await self._keys_are_needed(path):
            caller = Caller(DEFAULT_TENANT, "write")
        else:
            raise _refused(
                "key_required",
                "Send an API key: Authorization: Bearer td3_… Without keys only requests from this "
                "machine are served (docs/operations.md).",
            )
        caller.require(_needed_scope(method, path))
        if path in _OPERATOR_PATHS:
            caller.require_operator()
        return caller

    async def check_again(self, caller: Caller) -> None:
        """See that the key of a request that takes long is still good.

        Raises:
            ApiError: 401.
        """
        if caller.key_id is not None:
            _see_good(await self._rows.ask(caller.key_id), datetime.now(UTC))

    async def _by_key(self, key: str) -> Caller:
        key_id = key_id_of(key)
        if key_id is None:
            raise _refused("key_invalid", "This is not a key of this service, or not all of it.")
        row = await self._rows.ask(key_id)
        # The same work whether there is such a key or not.
        if not hmac.compare_digest(digest(key, self._server_secret()), row.digest if row else ""):
            row = None
        now = datetime.now(UTC)
        row = _see_good(row, now)
        if now - self._noted.get(key_id, row.last_used_at or _NEVER) >= _USE_NOTED:
            self._noted[key_id] = now
            await run_in_threadpool(self._note_use, key_id, now)
        await self._count(row.tenant_id, quotas_for(self._settings, row.quotas).requests_per_minute)
        return Caller(row.tenant_id, row.scope, row.id)

    async def _count(self, tenant_id: str, per_minute: int) -> None:
        seconds = await self._waits.ask((tenant_id, per_minute))
        if seconds:
            raise ApiError(
                429,
                "rate_limited",
                f"This tenant may send {per_minute} requests a minute.",
                headers={"Retry-After": str(seconds)},
            )

    def _find_keys(self, key_ids: Sequence[str]) -> list[Row[Any] | None]:
        with self._store.read() as session:
            found = keys.find_all(session, set(key_ids))
        return [found.get(key_id) for key_id in key_ids]

    def _server_secret(self) -> bytes:
        if self._secret is None:
            self._secret = read_secret(self._settings)
        if self._secret is None:
            logger.error("no secret: no API key can be recognised (TD3_KEY_SECRET, key.secret)")
            return b""
        return self._secret

    def _note_use(self, key_id: str, now: datetime) -> None:
        try:
            with self._store.write() as session:
                keys.mark_used(session, key_id, now)
        except SQLAlchemyError as error:  # no reason to refuse the request
            logger.warning("%s: use not noted: %s", key_id, error)

    async def _keys_are_needed(self, path: str) -> bool:
        if self._keys_exist or self._clock() - self._looked < _LOOK_SECONDS:
            return self._keys_exist
        try:
            self._keys_exist = await self._looks.ask(None)
        except SQLAlchemyError:
            if path not in _OPERATOR_PATHS:
                raise
            return False  # Prometheus shall hear of it; without the database nothing of it is rows
        self._looked = self._clock()
        return self._keys_exist

    def _look_for_keys(self, asked: Sequence[None]) -> list[bool]:
        with self._store.read() as session:
            return [keys.any_made(session)] * len(asked)


class Authentication:
    """ASGI middleware: nothing but the public paths is reached by a caller who is not known.

    Before routing and before the body is read, so what there is shows only to those who may ask.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http" or (path := route_path(scope)) in PUBLIC_PATHS:
            await self.app(scope, receive, send)
            return
        doorkeeper: Doorkeeper = scope["app"].state.doorkeeper
        headers = Headers(scope=scope)
        try:
            scope["state"]["caller"] = await doorkeeper.admit(
                scope["method"], path, headers, is_local(scope, headers)
            )
        except ApiError as error:
            await problem_response(scope, error)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def install_authentication(app: FastAPI) -> None:
    """Have every request but those of public paths say who asks."""
    app.add_middleware(Authentication)


def is_local(scope: Mapping[str, object], headers: Headers) -> bool:
    """Whether a program on this machine asks, and not somebody through a proxy or a web page.

    A page of another site can have a browser on this machine send requests: such a request names
    its origin, or (with a name that was made to point here) another host than this one.
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
    return _FORWARDING.isdisjoint(headers.keys())


@lru_cache(maxsize=1000)
def _names_loopback(host: str) -> bool:
    return is_loopback(_split(f"//{host}").hostname or "")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", "")


@lru_cache(maxsize=1000)
def is_loopback(host: str) -> bool:
    """Whether this address or name can be reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _see_good(row: Row[Any] | None, now: datetime) -> Row[Any]:
    if row is None:
        raise _refused("key_invalid", "There is no such key.")
    if row.revoked_at is not None:
        raise _refused("key_revoked", f"The key {row.id} was revoked.")
    if row.expires_at is not None and row.expires_at <= now:
        raise _refused("key_expired", f"The key {row.id} expired at {row.expires_at}.")
    return row


def _needed_scope(method: str, path: str) -> rows.Scope:
    if path == _ADMIN_PATH or path.startswith(f"{_ADMIN_PATH}/"):
        return "admin"
    return "read" if method in _READING else "write"


def _bearer(headers: Headers) -> str | None:
    given = headers.getlist("authorization")
    if not given:
        return None
    scheme, _, key = given[0].partition(" ")
    if len(given) > 1 or scheme.lower() != "bearer":
        raise _refused("key_invalid", "The header must be one, and say: Authorization: Bearer KEY")
    return key.strip()


def _refused(code: ServiceCode, detail: str) -> ApiError:
    challenge = _challenge() if code == "key_required" else _challenge(error="invalid_token")
    return ApiError(401, code, detail, headers={"WWW-Authenticate": challenge})


def _challenge(**parameters: str) -> str:
    """Value of WWW-Authenticate (RFC 6750, section 3)."""
    fields = {"realm": "td3", **parameters}
    return "Bearer " + ", ".join(f'{name}="{value}"' for name, value in fields.items())

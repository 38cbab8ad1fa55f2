"""What operators see of each request: a log record and metrics."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.metrics import HttpMetrics
from app.http.problems import request_id_of
from app.logs import log_fields

logger = logging.getLogger("app.access")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Asked for every few seconds by supervisors: counted, but not worth a line each.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


class Observe:
    """ASGI middleware, outside of all others, so that it sees what clients get."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.perf_counter()
        status = 0  # none: the client left before an answer began
        seconds = 0.0
        received = 0

        async def count_and_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def note_and_send(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status = message["status"]
                seconds = time.perf_counter() - begin
            await send(message)

        try:
            await self.app(scope, count_and_receive, note_and_send)
        finally:
            # The template, not the path: paths hold ids, and metrics must stay few.
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.metrics.served(method, route, status, seconds=seconds, body_bytes=received)
            if route not in _QUIET:
                _log(scope, route, status, time.perf_counter() - begin)


def _log(scope: Scope, route: str, status: int, seconds: float) -> None:
    client = scope.get("client")
    with log_fields(
        request_id=request_id_of(scope),
        route=route,
        status=status,
        seconds=round(seconds, 6),
        client=client[0] if client else None,
    ):
        # As `info` does, which takes twice as long: it looks for the line that called it.
        if logger.isEnabledFor(logging.INFO):
            what = (scope["method"], scope["path"])
            logger.handle(
                logger.makeRecord(logger.name, logging.INFO, __file__, 0, "%s %s", what, None)
            )

"""Access log and metrics: one record and one count per request."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.metrics import HttpMetrics
from app.http.problems import request_id_of
from app.logs import log_fields

logger = logging.getLogger("app.access")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Polled every few seconds by supervisors: counted, but not logged.
_UNLOGGED = frozenset({"/healthz", "/readyz", "/metrics"})


class AccessLog:
    """ASGI middleware. It has to be the outermost one, to see the answers that clients get."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.perf_counter()
        status = 0  # stays 0 if the client leaves before the answer begins
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
            # The template rather than the path, because each id in a path would be a new metric.
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.metrics.served(method, route, status, seconds=seconds, body_bytes=received)
            if route not in _UNLOGGED:
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
        # `logger.info` takes twice as long, because it looks for the line that called it.
        if logger.isEnabledFor(logging.INFO):
            arguments = (scope["method"], scope["path"])
            logger.handle(
                logger.makeRecord(logger.name, logging.INFO, __file__, 0, "%s %s", arguments, None)
            )

"""Answers that do not wait for the request's body, such as 401, and clients that still send it.

A server that closes a connection with unread bytes resets it, and the reset overtakes the answer:
nginx, which speaks HTTP/1.0 to it by default, reports 502 in place of 401. So some more of the body
is read and thrown away after such an answer.
"""

import asyncio
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 64 * 2**20  # so much more is read
_PAUSE_SECONDS = 2.0  # so long a client may be silent meanwhile
_TOTAL_SECONDS = 10.0


class EarlyAnswers:
    """ASGI middleware: after an early answer it reads on, for as long as the limits allow."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not _has_body(headers := Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        body = _Body(receive)

        async def send_early(message: Message) -> None:
            if body.is_over or (body.received == 0 and "expect" in headers):
                # In the second case the client waits for a word, and will not send the body now.
                await send(message)
            elif message["type"] == "http.response.start":
                if _remaining(headers, body.received) > MOST_BYTES:
                    MutableHeaders(scope=message)["Connection"] = "close"
                await send(message)
            elif message.get("more_body", False):
                await send(message)
            else:
                # The answer is complete for the client, by its length. The server goes on reading.
                await send({**message, "more_body": True})
                await body.discard()
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self.app(scope, body.receive, send_early)


class _Body:
    """A request's body as it is received.

    Attributes:
        received: its bytes so far.
        is_over: nothing more will come.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.received = 0
        self.is_over = False

    async def receive(self) -> Message:
        """The next message of the server."""
        message = await self._receive()
        self.received += len(message.get("body", b""))
        self.is_over = not message.get("more_body", False)
        return message

    async def discard(self) -> None:
        """Read to the end, or up to the limits."""
        end = self.received + MOST_BYTES
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _TOTAL_SECONDS
        while not self.is_over and self.received < end:
            try:
                async with asyncio.timeout_at(min(loop.time() + _PAUSE_SECONDS, deadline)):
                    await self.receive()
            except TimeoutError:
                return


def _has_body(headers: Mapping[str, str]) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _remaining(headers: Mapping[str, str], received: int) -> float:
    length = headers.get("content-length", "")
    return int(length) - received if length.isdecimal() else float("inf")

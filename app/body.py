"""The bytes of a request's body, from a client that may stop sending and stay."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request

from app.errors import ApiError


async def body_chunks(request: Request, stall_seconds: float) -> AsyncIterator[bytes]:
    """The body as it arrives.

    Args:
        request: its body has not been read.
        stall_seconds: longest pause between two pieces of it. A client that sends a little now
            and then is not ended by this; its upload is bounded in bytes.

    Raises:
        ApiError: 408 `body_stalled`.
        starlette.requests.ClientDisconnect: the client went away.
    """
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(stall_seconds):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise ApiError(
                408,
                "body_stalled",
                f"Nothing more of the body came for {stall_seconds:g} seconds.",
                headers={"Connection": "close"},
            ) from error
        yield chunk

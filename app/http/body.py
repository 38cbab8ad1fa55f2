"""The bytes of a request's body, from a client that may stop sending and stay, or never end."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

from fastapi import Request

from app.http.problems import ApiError, ServiceCode
from app.settings import Settings


@dataclass(frozen=True)
class Patience:
    """How many seconds a body may take.

    Attributes:
        pause: between two pieces of it.
        whole: for all of it, which ends also who sends a byte now and then.
    """

    pause: float
    whole: float

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As the settings have it."""
        return cls(settings.stall_seconds, settings.upload_seconds)


async def body_chunks(request: Request, patience: Patience) -> AsyncIterator[bytes]:
    """The body as it arrives; the request's body has not been read.

    Raises:
        ApiError: 408 `body_stalled` or `body_too_slow`.
        starlette.requests.ClientDisconnect: the client went away.
    """
    now = asyncio.get_running_loop().time
    end = now() + patience.whole
    stream = request.stream()
    while True:
        if now() >= end:
            message = f"The body has not ended after {patience.whole:g} seconds."
            raise _refused("body_too_slow", message)
        try:
            async with asyncio.timeout_at(min(now() + patience.pause, end)):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            if now() >= end:
                continue
            message = f"Nothing more of the body came for {patience.pause:g} seconds."
            raise _refused("body_stalled", message) from error
        yield chunk


def _refused(code: ServiceCode, detail: str) -> ApiError:
    return ApiError(408, code, detail, headers={"Connection": "close"})

"""A body of JSON, bounded in size and time. (FastAPI's own reading of bodies has no bounds.)"""

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from app.http.body import Patience, body_chunks
from app.http.problems import ApiError, validation_error

MAX_JSON_BYTES = 256 * 1024
_JSON = "application/json"

Model = TypeVar("Model", bound=BaseModel)


async def read_json(request: Request, patience: Patience, *others: str) -> bytes:
    """The body.

    Args:
        request: its body has not been read.
        patience: how long the body may take.
        others: media types that the route takes as well.

    Raises:
        ApiError: 408 `body_stalled` or `body_too_slow`; 413 `too_large`; 415
            `unsupported_media_type`.
        starlette.requests.ClientDisconnect: the client went away.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != _JSON:
        accepted = (_JSON, *others)
        raise ApiError(
            415,
            "unsupported_media_type",
            f"The body must be {' or '.join(accepted)}.",
            headers={"Accept-Post": ", ".join(accepted)},
        )
    body = bytearray()
    async for chunk in body_chunks(request, patience):
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise ApiError(413, "too_large", f"The body has more than {MAX_JSON_BYTES} bytes.")
    return bytes(body)


def parse(model: type[Model], text: str | bytes) -> Model:
    """What the JSON says.

    Raises:
        ApiError: 400 `invalid_json`; 422 `validation_error`.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise validation_error(error) from error

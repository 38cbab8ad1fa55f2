"""Rules that all routes share: strict query parameters, and the parameters of lists."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.routing import APIRoute

from app.http.problems import field_error

MAX_SEQUENCE = 2**31 - 1  # of a job's events: the column's largest value
Limit = Annotated[int, Query(ge=1, le=100, description="Most items to return.")]
After = Annotated[
    str | None,
    Query(max_length=100, pattern=r"^\w+$", description="Return what follows the item of this id."),
]


class StrictRoute(APIRoute):
    """A route that refuses unknown and repeated query parameters, which are likely mistakes.

    This is not a dependency because FastAPI takes longer to resolve one than to run it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, with the check before it."""
        handle = super().get_route_handler()
        known = {field.alias for field in self.dependant.query_params}

        async def check_and_handle(request: Request) -> Response:
            if request.scope["query_string"]:
                seen = set()
                for name, _ in request.query_params.multi_items():
                    if name not in known:
                        message = "There is no such query parameter"
                        raise field_error(name[:100], "extra_forbidden", message)
                    if name in seen:
                        raise field_error(name, "duplicate", "The query parameter is there twice")
                    seen.add(name)
            return await handle(request)

        return check_and_handle

"""The path as the router sees it. Every rule about paths has to use it."""

from collections.abc import Mapping
from typing import Any


def route_path(scope: Mapping[str, Any]) -> str:
    """A request's path without the root path and without a final newline.

    With `uvicorn --root-path /td3`, `scope["path"]` begins with the root path. Starlette removes it
    in `get_route_path`, which is not public; a test compares the two.

    Route patterns end in `$`, which also matches before a final newline. So the route `/keys`
    serves `/keys%0A`, and a rule about `/keys` must hold for it.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    below = path.removeprefix(root)
    if below[:1] in ("", "/"):  # otherwise only a prefix is equal: /td3 of /td34
        path = below
    return path.removesuffix("\n")

"""The path that routes are chosen by: what every rule about paths has to look at."""

from collections.abc import Mapping
from typing import Any


def route_path(scope: Mapping[str, Any]) -> str:
    """A request's path, as the router takes it.

    Not `scope["path"]`, which with `uvicorn --root-path /td3` begins with the root path. Starlette
    has this as `get_route_path`, in a module that is not public; a test holds the two together.

    A final newline (`/keys%0A`) goes too: routes are patterns that end in `$`, which matches before
    it as well, so `/keys` serves that path, and a rule about `/keys` must hold for it.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    below = path.removeprefix(root)
    if below[:1] in ("", "/"):  # else it only begins alike: /td3 and /td34
        path = below
    return path.removesuffix("\n")

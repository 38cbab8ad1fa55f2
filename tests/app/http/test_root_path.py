"""Below a root path (`uvicorn --root-path /td3`) every rule about paths holds as without one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette._utils import get_route_path

from app.http.auth import PUBLIC_PATHS
from app.http.route_path import route_path
from app.main import create_app
from tests.app.http.kit import Service, bearer, problem, running, settings_for

ROOT = "/td3"


@pytest.fixture(params=["none", "uvicorn", "scope"])
def rooted(
    request: pytest.FixtureRequest, sqlite_url: str, broker_url: str, tmp_path: Path
) -> Iterator[Service]:
    """The API without a root path; as uvicorn does it, which puts it before the path; and where
    only the scope has it.
    """
    settings = settings_for(sqlite_url, broker_url, tmp_path)
    app = create_app(settings)
    if request.param == "scope":
        app.root_path = ROOT  # FastAPI puts it into the scope, and leaves the path
    uvicorns = ROOT if request.param == "uvicorn" else ""
    with running(settings, app=app, root_path=uvicorns) as service:
        yield service


# A route's pattern matches before a final newline too, so `/keys%0A` is served by `/keys`.
@pytest.mark.parametrize("end", ["", "%0A"], ids=["as it is", "newline"])
def test_what_needs_more_than_the_method_says(rooted: Service, end: str) -> None:
    write, admin = bearer(rooted.key("write")), bearer(rooted.key("admin"))
    body = {"name": "another", "scope": "admin"}
    refused = rooted.http.post(f"/keys{end}", json=body, headers=write)
    problem(refused, 403, "insufficient_scope")
    assert rooted.http.post(f"/keys{end}", json=body, headers=admin).status_code == 201
    problem(rooted.http.get("/keys/key_none", headers=write), 403, "insufficient_scope")

    others = bearer(rooted.key("admin", "other"))
    problem(rooted.http.get(f"/metrics{end}", headers=others), 403, "insufficient_scope")
    assert rooted.http.get(f"/metrics{end}", headers=bearer(rooted.key("read"))).status_code == 200


def test_the_public_paths_are_public_and_no_others(rooted: Service) -> None:
    rooted.key()
    for path in sorted(PUBLIC_PATHS):
        for same in (path, f"{path}%0A"):
            assert rooted.http.get(same).status_code == 200, same
    for path in ("/jobs", "/usage", "/metrics", "/healthz/x", "/"):
        problem(rooted.http.get(path), 401, "key_required")


def test_routes_ask_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the middleware lets through by mistake, the route refuses."""
    monkeypatch.setattr("app.http.auth.required_scope", lambda _method, _path: "read")
    monkeypatch.setattr("app.http.auth.OPERATOR_PATHS", frozenset[str]())
    headers = bearer(service.key("write", "other"))
    for method, path in [
        ("POST", "/keys"),
        ("GET", "/keys"),
        ("GET", "/keys/key_none"),
        ("DELETE", "/keys/key_none"),
        ("GET", "/metrics"),
    ]:
        answer = service.http.request(method, path, headers=headers)
        problem(answer, 403, "insufficient_scope")


@pytest.mark.parametrize("root", ["", "/", "/td3", "/td3/", "/keys", "/a/b"])
@pytest.mark.parametrize("path", ["/keys", "/", "", "/keys/", "/td3", "/td34/keys", "//keys"])
def test_the_path_is_the_routers(root: str, path: str) -> None:
    for whole in (path, root + path):
        scope = {"path": whole, "root_path": root}
        assert route_path(scope) == get_route_path(scope)
    assert route_path({"path": path}) == path, "the server need not give a root path"

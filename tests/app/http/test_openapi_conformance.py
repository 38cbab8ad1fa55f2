"""The API against its own document: no 5xx, and every answer is one that the document tells of.

schemathesis makes requests out of the OpenAPI document, valid and invalid ones, and checks status,
headers, media type and schema of each answer. The service has API keys; some requests come with
no key, a bad one, or one of too little scope. `make fuzz` does the same for longer.
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.api_keys import key_id_of
from app.http.problems import PROBLEM_CODES, PROBLEM_MEDIA_TYPE
from app.main import app
from app.store import keys
from app.store.models import DEFAULT_TENANT
from tests.app.http.kit import Service, running, settings_for
from tests.effort import effort

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def _requests() -> Iterator[tuple[str, str, GenerationMode]]:
    """Every operation with valid requests, and those with a body or a query with invalid ones too:
    anything is a valid id in a path, and a valid text in a header.
    """
    for path, methods in app.openapi()["paths"].items():
        if path == "/readyz":  # may answer 503, which is what it is for
            continue
        for method, operation in methods.items():
            yield method, path, GenerationMode.POSITIVE
            places = {parameter["in"] for parameter in operation.get("parameters", [])}
            if "requestBody" in operation or "query" in places:
                yield method, path, GenerationMode.NEGATIVE


READ = {
    "sha256": "0" * 64,
    "bytes": 1,
    "statistics": {"users": 1, "items": 1, "interactions": 1, "time_min": 0, "time_max": 0},
}


def _reads_anything(command: Sequence[str], *, memory_bytes: int) -> list[str]:
    """A reader of uploads that takes every file at once; tests/app/http/test_upload_fuzz.py has the
    real one.
    """
    # A file or several, then the target, then options.
    after = command[command.index("td3engine.data.normalise") + 1 :]
    target = list(takewhile(lambda word: not word.startswith("--"), after))[-1]
    return ["sh", "-c", f"echo a log > {shlex.quote(target)}; echo {shlex.quote(json.dumps(READ))}"]


@pytest.fixture(scope="module")
def service(
    sqlite_template: Path, broker_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """The API over SQLite; all tests of this module share it."""
    folder = tmp_path_factory.mktemp("conformance")
    (folder / "td3.sqlite3").write_bytes(sqlite_template.read_bytes())
    settings = settings_for(
        f"sqlite:///{folder / 'td3.sqlite3'}",
        broker_server,
        folder,
        quotas={"requests_per_minute": 10**9},
    )
    with pytest.MonkeyPatch.context() as patch, running(settings) as service:
        patch.setattr("app.http.normaliser.launch_command", _reads_anything)
        service.http.headers["authorization"] = f"Bearer {service.key('admin')}"
        yield service


@pytest.fixture(scope="module")
def authorizations(service: Service) -> list[str | None]:
    """Whatever a client may send; the good ones first."""
    with service.store.write() as session:
        revoked = str(key_id_of(gone := service.key("admin")))
        keys.revoke(session, revoked, datetime.now(UTC), tenant_id=DEFAULT_TENANT)
    given = [service.key("admin"), service.key("write"), service.key("read")]
    strangers = [service.key("admin", "other"), gone, "td3_nonsense", ""]
    return [*(f"Bearer {key}" for key in (*given, *strangers)), "Basic dGQzOnRkMw==", None]


@pytest.fixture(scope="module")
def known(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Path parameters that lead somewhere: jobs of every kind, none of them running, so that every
    stream and wait ends by itself.
    """
    queued, failed, succeeded = (service.new_job()["id"] for _ in range(3))
    service.fail(service.claim(failed), {"code": "engine_crashed", "message": "It crashed."})
    service.succeed(service.claim(succeeded), tmp_path_factory.mktemp("artifacts"))
    service.http.post(f"/jobs/{queued}/cancel").raise_for_status()
    return {
        "dataset_id": [service.dataset(), service.dataset()],
        "job_id": [succeeded, failed, queued],
        "name": ["manifest.json", "summary.safetensors"],
        "key_id": [str(key_id_of(service.key("read"))) for _ in range(2)],
    }


@pytest.fixture(scope="module")
def schema(service: Service) -> BaseSchema:
    document = service.http.get("/openapi.json").json()
    return schemathesis.openapi.from_dict(document)


@pytest.mark.parametrize(("method", "path", "mode"), list(_requests()))
def test_answers_are_as_documented(
    service: Service,
    known: dict[str, list[str]],
    authorizations: list[str | None],
    schema: BaseSchema,
    method: str,
    path: str,
    mode: GenerationMode,
) -> None:
    @effort(12)
    @given(case=schema[path][method].as_strategy(generation_mode=mode), data=st.data())
    def check(case: Case[Any], data: st.DataObject) -> None:
        _lead_somewhere(case, known, data)
        best = authorizations[0]  # so that most requests come past the door
        authorization = data.draw(st.sampled_from([best] * 12 + authorizations), label="key")
        # Framing is the client library's: uvicorn answers a malformed length with a plain 400.
        for name in ("Authorization", "Content-Length", "Transfer-Encoding"):
            case.headers.pop(name, None)
        if authorization is not None:
            case.headers["Authorization"] = authorization
        answer = case.call(base_url=service.url)
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == [PROBLEM_MEDIA_TYPE]
        if answer.status_code >= 400 and method != "head":
            body: dict[str, Any] = answer.json()
            assert body["code"] in PROBLEM_CODES
            assert body["status"] == answer.status_code
            assert [body["request_id"]] == answer.headers["x-request-id"]

    check()
    assert service.uploads_in_flight() == []


def _lead_somewhere(case: Case[Any], known: dict[str, list[str]], data: st.DataObject) -> None:
    """Replace parameters of the path by ones that exist, in most of the requests."""
    parameters = dict(case.path_parameters or {})
    for name in parameters.keys() & known:
        parameters[name] = data.draw(st.sampled_from([parameters[name], *known[name]]), label=name)
    case.path_parameters = parameters

"""The OpenAPI document: its texts, and the parts that FastAPI cannot derive from routes."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from app.http.auth import PUBLIC_PATHS
from app.http.problems import PROBLEM_MEDIA_TYPE
from app.http.schemas.jobs import JobRequest, JobSettings
from app.http.schemas.keys import KeyRequest
from app.http.schemas.problems import Problem
from td3engine.config import DistillConfig

TITLE = "TD3: dataset distillation for sequential recommendation"
DESCRIPTION = """\
Distils an interaction log into a small synthetic summary that trains a sequential recommender
nearly as well as the whole log does.

1. `POST /datasets` uploads a log, `POST /jobs` starts to distil it (or both in one call).
2. `GET /jobs/{id}` with `Prefer: wait=45`, or `GET /jobs/{id}/events` as server-sent events, shows
   its progress.
3. `GET /jobs/{id}/summary` is the result.

Every error is `application/problem+json` (RFC 9457) with a stable `code`.
"""
TAGS = [
    {"name": "datasets", "description": "Interaction logs, checked and normalised."},
    {"name": "jobs", "description": "Distillations: create, watch, cancel."},
    {"name": "artifacts", "description": "Files of succeeded jobs."},
    {"name": "usage", "description": "Your tenant's use of its quotas."},
    {"name": "keys", "description": "API keys of your tenant; for keys of scope `admin`."},
    {"name": "health", "description": "For supervisors, load balancers and Prometheus."},
]
_KEY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "td3_…",
    "description": "An API key (`td3 keys create`). A service without keys, which answers requests "
    "from its own machine only, needs none.",
}
# Models that no route declares as a parameter, because the service parses these bodies itself.
_EXTRA_SCHEMAS = (DistillConfig, JobRequest, JobSettings, KeyRequest, Problem)


def problem_responses(**meanings: str) -> dict[int | str, dict[str, Any]]:
    """The problems that a route answers: `problem_responses(_404="No such job.")`."""
    return {
        status.removeprefix("_"): {
            "description": meaning,
            "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, meaning in meanings.items()
    }


# What every route may answer.
COMMON_PROBLEMS = problem_responses(
    _401="`key_required`, `key_invalid`, `key_expired` or `key_revoked`.",
    _403="`insufficient_scope`: the key may not do this.",
    _429="`rate_limited`, `storage_full`, `too_many_active_jobs` or `too_many_jobs`: see "
    "`Retry-After`.",
    _422="`validation_error`: `errors` names each field.",
    _500="`internal_error`: our fault; logged under `request_id`.",
    _503="`database_unavailable` or `disk_full`: try again after `Retry-After` seconds.",
)


def multipart_body(properties: dict[str, Any], *, required: list[str]) -> dict[str, Any]:
    """The media type object of a form, which the service parses itself."""
    return {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": properties, "required": required}
        }
    }


def complete_document(app: FastAPI) -> None:
    """Extend the document of `app` with schemas that routes refer to by name, and with security."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            _, extra = models_json_schema(
                [(model, "validation") for model in _EXTRA_SCHEMAS],
                ref_template="#/components/schemas/{model}",
            )
            schemas = schema["components"]["schemas"]
            schemas.update(extra["$defs"])
            schema["components"]["securitySchemes"] = {"key": _KEY_SCHEME}
            schema["security"] = [{"key": []}]
            for path in PUBLIC_PATHS & schema["paths"].keys():
                for operation in schema["paths"][path].values():
                    operation["security"] = []
                    for status in ("401", "403", "429"):
                        del operation["responses"][status]
            schemas["Job"]["properties"]["config"] = {"$ref": "#/components/schemas/DistillConfig"}
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]

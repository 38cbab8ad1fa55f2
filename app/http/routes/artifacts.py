"""A job's artifacts: the list, each file, and the summary as one zip."""

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from app.http.auth import CallerDep
from app.http.context import ContextDep
from app.http.downloads import Download, respond
from app.http.lookups import load_job
from app.http.openapi import problem_responses
from app.http.problems import ApiError, not_found
from app.http.routing import StrictRoute
from app.http.schemas.common import Page
from app.http.schemas.jobs import Artifact, Job
from app.http.summary_zip import Member, stream_zip, zip_etag
from td3engine.contract import ARTIFACT_MEDIA_TYPES, SUMMARY_FILES

router = APIRouter(prefix="/jobs", tags=["artifacts"], route_class=StrictRoute)

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ARTIFACT_CONTENT: dict[str, Any] = {
    media_type: {"schema": {}} if media_type == "application/json" else _BINARY
    for media_type in ARTIFACT_MEDIA_TYPES
}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


_ETAG_HEADER = {"ETag": _header("Strong: names these very bytes.")}
_SUMMARY_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The zip file.",
        "content": {"application/zip": _BINARY},
        "headers": _ETAG_HEADER,
    },
    304: {"description": "The client has it: `If-None-Match` names its ETag."},
    **problem_responses(
        _404="`job_not_found`",
        _409="`job_not_succeeded`: there is no summary (yet).",
        _412="`precondition_failed`: `If-Match` names something else.",
    ),
}
_ARTIFACT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file.",
        "content": _ARTIFACT_CONTENT,
        "headers": {**_ETAG_HEADER, "Accept-Ranges": _header("`bytes`")},
    },
    206: {
        "description": "The bytes that `Range: bytes=...` asks for (one range).",
        "content": _ARTIFACT_CONTENT,
        "headers": {**_ETAG_HEADER, "Content-Range": _header("Which bytes, of how many.")},
    },
    304: _SUMMARY_RESPONSES[304],
    **problem_responses(
        _404="`job_not_found` or `artifact_not_found`",
        _409="`job_not_succeeded`: it has no artifacts (yet).",
        _412="`precondition_failed`: `If-Match` names something else.",
        _416="`range_not_satisfiable`: the file is shorter, see `Content-Range`.",
    ),
}


@router.get(
    "/{job_id}/artifacts",
    operation_id="listArtifacts",
    responses=problem_responses(_404="`job_not_found`"),
)
def list_artifacts(job_id: str, context: ContextDep, caller: CallerDep) -> Page[Artifact]:
    """All files of the job; none before it has succeeded."""
    return Page(data=load_job(context, caller, job_id).artifacts, has_more=False)


@router.head(
    "/{job_id}/summary",
    operation_id="headSummary",
    response_class=Response,
    responses=_SUMMARY_RESPONSES,
)
@router.get(
    "/{job_id}/summary",
    operation_id="downloadSummary",
    response_class=Response,
    responses=_SUMMARY_RESPONSES,
)
def download_summary(
    job_id: str, request: Request, context: ContextDep, caller: CallerDep
) -> Response:
    """The summary: `summary.safetensors`, `items.parquet` and `manifest.json` as one zip, with the
    same bytes each time. It is made while it is sent, so it has no ranges: to resume a download,
    fetch the artifacts.
    """
    job = load_job(context, caller, job_id)
    files = {artifact.name: artifact for artifact in _artifacts(job)}
    members = [Member(name, files[name].bytes, files[name].sha256) for name in SUMMARY_FILES]

    def read(_start: int, _stop: int | None) -> Iterator[bytes]:
        for member in members:  # a missing blob must fail before the answer begins
            context.blobs.open_reader(member.sha256)
        return stream_zip(members, context.blobs.open_reader)

    return respond(
        request,
        Download(f"{job.id}.zip", "application/zip", zip_etag(members), size=None, read=read),
    )


@router.head(
    "/{job_id}/artifacts/{name}",
    operation_id="headArtifact",
    response_class=Response,
    responses=_ARTIFACT_RESPONSES,
)
@router.get(
    "/{job_id}/artifacts/{name}",
    operation_id="downloadArtifact",
    response_class=Response,
    responses=_ARTIFACT_RESPONSES,
)
def download_artifact(
    job_id: str, name: str, request: Request, context: ContextDep, caller: CallerDep
) -> Response:
    """One file of the job; its ETag is its sha256. `Range` (one, with or without `If-Range`)
    resumes a broken download.
    """
    job = load_job(context, caller, job_id)
    artifact = next((each for each in _artifacts(job) if each.name == name), None)
    if artifact is None:
        raise not_found("artifact", name)
    return respond(
        request,
        Download(
            artifact.name,
            artifact.media_type,
            etag=f'"{artifact.sha256}"',
            size=artifact.bytes,
            read=lambda start, stop: context.blobs.open_reader(
                artifact.sha256, start=start, stop=stop
            ),
        ),
    )


def _artifacts(job: Job) -> list[Artifact]:
    if job.status != "succeeded":
        raise ApiError(
            409, "job_not_succeeded", f"The job is {job.status}: it has made no summary."
        )
    return job.artifacts

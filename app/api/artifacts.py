"""What a job made: each file, and the summary as one zip."""

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from app.api.context import ContextDep, not_modified, problems
from app.api.jobs import load_job
from app.blobs import sql as blobs
from app.bundle import Member, bundle_etag, stream_zip
from app.errors import ApiError, not_found
from app.schemas.jobs import Artifact, Job

router = APIRouter(prefix="/jobs", tags=["artifacts"])

BUNDLE_NAMES = ("manifest.json", "items.parquet", "summary.safetensors")
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ETAG_HEADER = {"ETag": {"schema": {"type": "string"}}}
_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "The client has it: `If-None-Match` names its ETag."}
}


@router.get(
    "/{job_id}/summary",
    operation_id="downloadSummary",
    response_class=Response,
    responses={
        200: {
            "description": "The zip file.",
            "content": {"application/zip": _BINARY},
            "headers": _ETAG_HEADER,
        },
        **_NOT_MODIFIED,
        **problems(_404="`job_not_found`", _409="`job_not_succeeded`: there is no summary (yet)."),
    },
)
def download_summary(job_id: str, request: Request, context: ContextDep) -> Response:
    """The summary: `summary.safetensors`, `items.parquet` and `manifest.json` as one zip, which has
    the same bytes each time.
    """
    job = load_job(context, job_id)
    files = {artifact.name: artifact for artifact in _artifacts(job)}
    members = [Member(name, files[name].bytes, files[name].sha256) for name in BUNDLE_NAMES]
    etag = bundle_etag(members)
    headers = _headers(etag, f"{job.id}.zip")
    if not_modified(request, etag):
        return Response(status_code=304, headers=headers)
    for member in members:  # before the first byte is sent, while a missing blob can still be told
        blobs.open_reader(context.store, member.sha256)
    chunks = stream_zip(members, lambda sha256: blobs.open_reader(context.store, sha256))
    return StreamingResponse(chunks, headers=headers, media_type="application/zip")


@router.get(
    "/{job_id}/artifacts/{name}",
    operation_id="downloadArtifact",
    response_class=Response,
    responses={
        200: {
            "description": "The file.",
            "content": {"application/octet-stream": _BINARY},
            "headers": _ETAG_HEADER,
        },
        **_NOT_MODIFIED,
        **problems(
            _404="`job_not_found` or `artifact_not_found`",
            _409="`job_not_succeeded`: it has no artifacts (yet).",
        ),
    },
)
def download_artifact(job_id: str, name: str, request: Request, context: ContextDep) -> Response:
    """One file that the job made; its ETag is its sha256."""
    job = load_job(context, job_id)
    artifact = next((one for one in _artifacts(job) if one.name == name), None)
    if artifact is None:
        raise not_found("artifact", name)
    etag = f'"{artifact.sha256}"'
    headers = _headers(etag, artifact.name)
    if not_modified(request, etag):
        return Response(status_code=304, headers=headers)
    headers["Content-Length"] = str(artifact.bytes)
    chunks = blobs.open_reader(context.store, artifact.sha256)
    return StreamingResponse(chunks, headers=headers, media_type=artifact.media_type)


def _artifacts(job: Job) -> list[Artifact]:
    if job.status != "succeeded":
        raise ApiError(
            409, "job_not_succeeded", f"The job is {job.status}: it has made no summary."
        )
    return job.artifacts


def _headers(etag: str, filename: str) -> dict[str, str]:
    """A download under this name, never shown as a page of ours (`nosniff`, attachment)."""
    return {
        "ETag": etag,
        "Cache-Control": "no-cache",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(filename, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }

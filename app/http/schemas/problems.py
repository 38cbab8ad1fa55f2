"""Models of errors (RFC 9457)."""

from pydantic import BaseModel, ConfigDict, Field


class FieldError(BaseModel):
    """One field of the request that was refused."""

    path: str = Field(description="Dotted path of the field.", examples=["config.outer.window"])
    code: str = Field(description="Kind of the violation.", examples=["greater_than"])
    message: str = Field(examples=["Input should be greater than 0"])


class Problem(BaseModel):
    """An error: `code` is stable and for programs, `detail` is for people."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:td3:problem:job_not_found",
                "title": "Not Found",
                "status": 404,
                "detail": "There is no job 'job_1'.",
                "code": "job_not_found",
                "request_id": "5f0c6f1b2f3c4a9d8e7f6a5b4c3d2e1f",
            }
        }
    )

    type: str = Field(description="`urn:td3:problem:` and the code.")
    title: str = Field(description="The status in words.")
    status: int
    detail: str = Field(description="What is wrong, for people.")
    code: str = Field(
        description="What is wrong, for programs: stable, listed in docs/http-api.md."
    )
    request_id: str = Field(description="Also in the header `x-request-id`, and in our log.")
    param: str | None = Field(default=None, description="The field at fault, as a dotted path.")
    errors: list[FieldError] | None = Field(default=None, description="All fields at fault.")
    line: int | None = Field(default=None, description="Line of the uploaded file, from 1.")
    column: str | None = Field(default=None, description="Column of the uploaded file.")

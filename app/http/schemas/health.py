"""Models of health checks."""

from typing import Literal

from pydantic import BaseModel, Field


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether the service can serve requests, and if not, why."""

    ready: bool
    checks: dict[str, str] = Field(
        description="`ok`, or what is wrong, for each of database, migrations, blobs, broker and "
        "disk.",
        examples=[dict.fromkeys(("database", "migrations", "blobs", "broker", "disk"), "ok")],
    )

"""All settings of the service: environment variables `TD3_...` and their defaults."""

import re
import sys
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Self

import pydantic_settings
from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.addresses import BROKER_FORMS, DATABASE_FORMS, parse_broker_url, parse_database_url
from app.logs import LogFormat
from td3engine.contract import ENGINE

PREFIX = "TD3_"
# Variables that are no settings of the service: the client's, and those of docker-compose.yml.
OTHER_VARIABLES = frozenset({"TD3_API_KEY", "TD3_POSTGRES_PASSWORD", "TD3_PUBLISHED_PORT"})

# Variables with credentials. Compose's file has the last one.
SECRET_VARIABLES = frozenset(
    {
        "TD3_BLOBS",
        "TD3_BROKER_URL",
        "TD3_DATABASE_URL",
        "TD3_KEY_SECRET",
        "TD3_POSTGRES_PASSWORD",
    }
)
_Seconds = Annotated[float, Field(gt=0)]
_Days = Annotated[float | None, Field(ge=0)]


class Settings(BaseSettings):
    """Read once, when a process starts. The field `name` is `TD3_NAME` in the environment."""

    # Values may hold passwords, which no error may quote.
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, hide_input_in_errors=True)

    # Absolute, because child processes may be started in other folders.
    data_dir: Annotated[Path, AfterValidator(Path.absolute)] = Field(
        default=Path("td3-data"),
        validate_default=True,
        description="Folder for the default database, uploads in flight and work folders.",
    )
    database_url: str = Field(
        default_factory=lambda earlier: f"sqlite:///{earlier['data_dir'] / 'td3.sqlite3'}",
        description=f"{DATABASE_FORMS}; a pooler such as PgBouncer may be between. Default: a "
        "SQLite file in data_dir.",
    )
    blobs: str = Field(
        default="sql:",
        description="Where the bytes of datasets, checkpoints and artifacts are stored. `sql:`: in "
        "the database.",
    )
    broker_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        description=f"Redis or Valkey: {BROKER_FORMS}.",
    )
    host: str = Field(default="127.0.0.1", description="Address that the API listens on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=8000, description="Port that the API listens on; 0 takes a free one."
    )

    log_format: LogFormat = Field(
        default="auto",
        description="`json`: one JSON object a record; `text`: lines for people; `auto`: text if "
        "stderr is a terminal, else JSON.",
    )
    worker_metrics_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=0,
        description="Port at which a worker answers Prometheus; 0: none. `td3 serve` gives its "
        "second worker the next port, and so on.",
    )
    worker_metrics_host: str = Field(
        default="127.0.0.1", description="Address for worker_metrics_port."
    )
    ready_free_bytes: Annotated[int, Field(ge=0)] = Field(
        default=1024**3, description="With less room on the disk of data_dir, /readyz says 503."
    )
    key_secret: Annotated[SecretStr, Field(min_length=32)] | None = Field(
        default=None,
        description="Secret by which API keys are recognised; without it every key is void. "
        "Default: key.secret in data_dir, made with the first key. Give it where several APIs "
        "serve one database.",
    )

    quotas: dict[str, int] = Field(
        default={},
        description="Quotas of every tenant, as JSON: those that differ from their default. "
        "`td3 keys quotas` sets those of one tenant.",
    )

    max_upload_bytes: Annotated[int, Field(gt=0)] = Field(
        default=2 * 1024**3, description="Largest file that may be uploaded."
    )
    upload_limits: dict[str, int | float] = Field(
        default={},
        description="Limits of an uploaded log, as JSON: fields of td3engine.data.types.Limits "
        "that differ from their default.",
    )
    normalise_memory_bytes: Annotated[int, Field(gt=0)] = Field(
        default=4 * 1024**3,
        description="Address space of the process that reads an uploaded log; more kills it.",
    )

    stall_seconds: _Seconds = Field(
        default=60, description="A client that sends nothing more of a body for so long is refused."
    )
    upload_seconds: _Seconds = Field(
        default=3600,
        description="A body that has not ended after so long is refused, however steadily it "
        "comes.",
    )
    normalise_seconds: _Seconds = Field(
        default=600, description="Time that reading an uploaded log may take; longer ends it."
    )

    start_seconds: Annotated[float, Field(ge=0)] = Field(
        default=60,
        description="So long a worker waits at its start for the database, its tables and the "
        "blob store. Then it ends, with exit code 75.",
    )
    max_attempts: Annotated[int, Field(gt=0)] = Field(
        default=3, description="Starts of a job before a crash makes it fail."
    )
    lease_seconds: _Seconds = Field(
        default=60, description="A worker that is silent for so long has lost its job."
    )
    heartbeat_seconds: _Seconds = Field(
        default=15, description="Between renewals of the lease; well below lease_seconds."
    )
    cancel_poll_seconds: _Seconds = Field(
        default=1, description="Between a worker's looks at whether its job shall be cancelled."
    )
    cancel_grace_seconds: _Seconds = Field(
        default=120,
        description="From asking the engine to stop (for a cancel, or because the worker shuts "
        "down) to killing it. Give containers a stop time-out above this.",
    )
    engine_silence_seconds: _Seconds = Field(
        default=3600,
        description="An engine that prints nothing for so long hangs: it is killed, which ends the "
        "attempt. Well above the longest silence of a healthy one: an epoch of the teacher on a "
        "large log.",
    )
    checkpoint_seconds: _Seconds = Field(
        default=60, description="At least so long between two checkpoints of the engine."
    )
    janitor_seconds: _Seconds = Field(
        default=15, description="Between a worker's looks for lost jobs and unneeded bytes."
    )
    republish_after_seconds: _Seconds = Field(
        default=60, description="A queued job that nobody took is sent to the broker again."
    )
    blob_sweep_seconds: _Seconds = Field(
        default=600,
        description="Stored bytes that nothing refers to are deleted when they are this old; "
        "well above the time from storing bytes to referring to them.",
    )
    retain_jobs_days: _Days = Field(
        default=None,
        description="Jobs that ended so long ago are deleted, with all they made. Unset: never.",
    )
    retain_events_days: _Days = Field(
        default=None,
        description="Events of jobs that ended so long ago are deleted, except for the changes of "
        "state. Unset: with the job.",
    )
    retain_datasets_days: _Days = Field(
        default=None,
        description="Datasets without jobs, uploaded and last used so long ago, are deleted. "
        "Unset: never.",
    )
    gc_seconds: _Seconds = Field(
        default=3600, description="Between a worker's deletions of what is old."
    )
    idempotency_seconds: _Seconds = Field(
        default=86_400, description="An Idempotency-Key and its answer are remembered for so long."
    )
    webhook_seconds: _Seconds = Field(
        default=2, description="Between a worker's looks for messages to webhooks that are due."
    )
    webhook_networks: list[IPv4Network | IPv6Network] = Field(
        default=[],
        description="Networks that webhooks may lead to although they are not public, as a JSON "
        'list such as ["10.0.0.0/8"]; with any of them plain http is allowed too.',
    )
    engine_command: Annotated[list[str], Field(min_length=1)] = Field(
        default=[sys.executable, *ENGINE],
        description="The engine, as a JSON list; --data, --config, --out and --checkpoint-seconds "
        "are put behind it.",
    )

    @field_validator("database_url")
    @classmethod
    def _names_a_database(cls, value: str) -> str:
        parse_database_url(value)
        return value

    @field_validator("broker_url")
    @classmethod
    def _names_a_broker(cls, value: str) -> str:
        parse_broker_url(value)
        return value

    @field_validator("key_secret", mode="before")
    @classmethod
    def _empty_is_not_given(cls, value: object) -> object:
        return value or None

    @model_validator(mode="after")
    def _leases_outlast_heartbeats(self) -> Self:
        if self.heartbeat_seconds >= self.lease_seconds:
            raise ValueError("TD3_HEARTBEAT_SECONDS must be below TD3_LEASE_SECONDS")
        return self


class SettingsError(ValueError):
    """Settings cannot be used; the message names their variables, and holds no password."""


def read_settings(**overrides: Any) -> Settings:
    """The settings: overrides, then the environment, then the defaults.

    Raises:
        SettingsError: one of them cannot be used.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise settings_error(error) from error
    except pydantic_settings.SettingsError as error:
        # Not JSON where JSON is needed. pydantic-settings names the field in its text only.
        name = re.search(r'field "(\w+)"', str(error))
        assert name is not None, error
        raise SettingsError(f"{PREFIX}{name[1].upper()}: not JSON: {error.__cause__}") from error


def settings_error(error: ValidationError, *, below: str = "") -> SettingsError:
    """The error of a setting, or of a model that is made from the setting `below`."""
    reasons = []
    for reason in error.errors(include_url=False, include_input=False, include_context=False):
        name, *inner = [*([below] if below else []), *map(str, reason["loc"])] or ["settings"]
        where = "".join(f": {part}" for part in inner)
        said = reason["msg"].removeprefix("Value error, ")
        # A check of several settings has no place of its own; its words name them.
        reasons.append(f"{PREFIX}{name.upper()}{where}: {said}" if reason["loc"] or below else said)
    return SettingsError("; ".join(reasons))

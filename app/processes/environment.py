"""The environment of child processes that handle clients' data."""

import os

from app.blobs.registry import secret_variables
from app.settings import SECRET_VARIABLES


def environment_without_secrets() -> dict[str, str]:
    """This process's environment without the credentials of the service."""
    secrets = SECRET_VARIABLES | secret_variables()
    return {name: value for name, value in os.environ.items() if name not in secrets}

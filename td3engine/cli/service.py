"""`td3 serve`, `td3 gc`, `td3 keys`: each replaces this process by a module of `app`.

The engine does not import `app`, so the command line reaches it by `exec`.
"""

import os
import sys
from importlib.util import find_spec
from typing import NoReturn

import typer

from td3engine.cli.options import fail

FORWARD_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}
NEEDED = ("celery", "pydantic_settings", "sqlalchemy")  # of the extra `service`


def serve(context: typer.Context) -> NoReturn:
    """Run the service here: API, worker, embedded Valkey, SQLite. See [b]td3 serve --help[/]."""
    _exec_module("app.standalone.serve", context)


def gc(context: typer.Context) -> NoReturn:
    """Delete old jobs, events and datasets of a service. See [b]td3 gc --help[/]."""
    _exec_module("app.admin.gc", context)


def keys(context: typer.Context) -> NoReturn:
    """Create, list and revoke API keys of a service. See [b]td3 keys --help[/]."""
    _exec_module("app.admin.keys", context)


def _exec_module(module: str, context: typer.Context) -> NoReturn:
    for name in NEEDED:
        if find_spec(name) is None:
            fail(f"{name} is missing: pip install 'td3engine[engine,service,embedded]'", 65)
    os.execv(sys.executable, [sys.executable, "-m", module, *context.args])

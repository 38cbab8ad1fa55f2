"""`td3 serve`, `td3 gc`, `td3 keys`: the process is handed to the room that knows servers."""

import os
import sys
from typing import NoReturn

import typer

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def serve(context: typer.Context) -> NoReturn:
    """Run the service here: API, worker, embedded Valkey, SQLite. See [b]td3 serve --help[/]."""
    _become("app.standalone.serve", context)


def gc(context: typer.Context) -> NoReturn:
    """Delete old jobs, events and datasets of a service. See [b]td3 gc --help[/]."""
    _become("app.admin.gc", context)


def keys(context: typer.Context) -> NoReturn:
    """Make, list and revoke API keys of a service. See [b]td3 keys --help[/]."""
    _become("app.admin.keys", context)


def _become(module: str, context: typer.Context) -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-m", module, *context.args])

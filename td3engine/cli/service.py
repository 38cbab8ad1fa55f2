"""`td3 serve`, `td3 gc`, `td3 keys`: each replaces this process by a module of `app`.

The engine does not import `app`, so the command line reaches it by `exec`.
"""

import os
import sys
from typing import NoReturn

import typer

FORWARD_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}


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
    os.execv(sys.executable, [sys.executable, "-m", module, *context.args])

"""Interaction logs: reading, normalising, describing, filtering, splitting. Imports no torch.

The public names of the room, each imported when it is first used: the service's API needs types
and limits only, and starts without pyarrow. The function `split` is not among them, because it
would hide the module of that name: `from td3engine.data.split import split`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from td3engine.data.facts import LogFacts, facts_of, notes_of
    from td3engine.data.filtering import FilterStatistics, filter_statistics
    from td3engine.data.normalised import read_normalised, write_normalised
    from td3engine.data.reading import format_of_name, read_log
    from td3engine.data.split import Split, SplitStatistics, training_counts
    from td3engine.data.types import (
        ColumnNames,
        Dialect,
        Interactions,
        Limits,
        LogError,
        LogErrorCode,
        LogStatistics,
        Reading,
        describe,
    )
    from td3engine.data.windows import WindowIndex, WindowSampler, training_windows

_MODULES = {
    "normalised": ("read_normalised", "write_normalised"),
    "reading": ("format_of_name", "read_log"),
    "facts": ("LogFacts", "facts_of", "notes_of"),
    "filtering": ("FilterStatistics", "filter_statistics"),
    "split": ("Split", "SplitStatistics", "training_counts"),
    "types": (
        "ColumnNames",
        "Dialect",
        "Interactions",
        "Limits",
        "LogError",
        "LogErrorCode",
        "LogStatistics",
        "Reading",
        "describe",
    ),
    "windows": ("WindowIndex", "WindowSampler", "training_windows"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ColumnNames",
    "Dialect",
    "FilterStatistics",
    "Interactions",
    "Limits",
    "LogError",
    "LogErrorCode",
    "LogFacts",
    "LogStatistics",
    "Reading",
    "Split",
    "SplitStatistics",
    "WindowIndex",
    "WindowSampler",
    "describe",
    "facts_of",
    "filter_statistics",
    "format_of_name",
    "notes_of",
    "read_log",
    "read_normalised",
    "training_counts",
    "training_windows",
    "write_normalised",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The formats that a summary can be exported to. Imports no torch.

A new format is one file with a function, and one line in `FORMATS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from td3engine.summary.bundle import Bundle


@dataclass(frozen=True)
class ExportOptions:
    """Options of all formats; each format reads its own.

    Attributes:
        top_k: `soft`: items a position.
        renormalise: `soft`: whether their probabilities sum to one.
        copies, temperature, seed: sampled sequences: see `sample_sequences`.
        repeats: sampled sequences: whether an item may come twice; None: if the log's events repeat
            items (`repeats_by_log`).
        guidance: sampled sequences: weight of the guide (`train_guide`); None: no guide.
    """

    top_k: int
    renormalise: bool
    copies: int
    temperature: float
    guidance: float | None
    repeats: bool | None
    seed: int


Export = Callable[["Bundle", Path, ExportOptions, "torch.device"], str]
"""(summary, file, options, device) -> one line about what was written."""


@dataclass(frozen=True)
class Format:
    """A format: a help text, and its function as `module:function`."""

    help: str
    function: str


FORMATS = {
    "soft": Format("probabilities (Parquet)", "td3engine.export.soft_targets:export_soft"),
    "csv": Format("sampled sequences", "td3engine.export.files:export_csv"),
    "inter": Format(
        "sampled sequences, as RecBole reads them", "td3engine.export.files:export_inter"
    ),
}


def export_to(
    name: str, bundle: "Bundle", out: Path, options: ExportOptions, device: "torch.device"
) -> str:
    """Write a summary in one of `FORMATS`; returns one line about what was written.

    Raises:
        OutputExistsError: there is such a file already.
        UnusableError: an option is out of range, or the format cannot hold an item id.
    """
    module, function = FORMATS[name].function.split(":")
    export: Export = getattr(import_module(module), function)
    return export(bundle, out, options, device)

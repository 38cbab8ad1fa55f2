"""The forms that a summary can be exported to. Imports no torch.

A new form is a function in a file of its own and a line in `FORMATS`.
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
    """What an export can be told; each form reads what concerns it.

    Attributes:
        top_k, renormalise: of soft targets: items a position, and whether these sum to one.
        copies, temperature, guidance, repeats, seed: of sampled sequences (`sample_sequences`).
    """

    top_k: int
    renormalise: bool
    copies: int
    temperature: float
    guidance: float | None
    repeats: bool
    seed: int


Export = Callable[["Bundle", Path, ExportOptions, "torch.device"], str]
"""(summary, file, options, device) -> a line that says what was written."""


@dataclass(frozen=True)
class Format:
    """A form: what it is for, and where its function is, as `module:function`."""

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
    """Write a summary in one of `FORMATS`; a line that says what was written.

    Raises:
        OutputExistsError: there is such a file already.
        UnusableError: options that cannot work, or an item id that the form cannot hold.
    """
    module, function = FORMATS[name].function.split(":")
    export: Export = getattr(import_module(module), function)
    return export(bundle, out, options, device)

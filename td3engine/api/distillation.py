"""Distil a log into a summary, in this process."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from td3engine.api.summary import Summary
from td3engine.api.training import Source, as_log
from td3engine.config import Preset
from td3engine.config.presets import build_config
from td3engine.events import Listener
from td3engine.pipeline.distil import distil
from td3engine.pipeline.progress_bar import PhaseBars
from td3engine.pipeline.run import Control
from td3engine.runtime.stop_signals import stop_signals


def distill(
    log: Source,
    *,
    preset: Preset = "balanced",
    config: Mapping[str, Any] | None = None,
    seed: int | None = None,
    folder: str | Path | None = None,
    progress: bool | Listener = False,
) -> Summary:
    """Distil a log into a summary.

    Args:
        log: a file's path, or a log that `read_log` gave.
        preset: how much work to put in.
        config: settings over the preset, nested, e.g. `{"summary": {"users": 50}}`.
        seed: same seed, log and machine: same bytes.
        folder: where the checkpoint lies while the run is on, and in the end the summary. A run
            that was interrupted goes on from there when it is called again. None: a temporary one.
        progress: True shows a bar a phase; a function is called with every event.

    Raises:
        LogError: the log cannot be read, or too little of it is left after the filter.
        pydantic.ValidationError: an unknown setting, or a value outside its limits.
        OutputExistsError: the folder holds a summary.
        CheckpointMismatchError: the folder's checkpoint is of another log or configuration.
        Interrupted: a signal asked for a stop; the folder has a checkpoint.
    """
    overrides = dict(config or {})
    if seed is not None:
        overrides["seed"] = seed
    settings = build_config(preset, overrides)
    with _folder(folder) as target, _listener(progress) as listener, stop_signals() as stop:
        outcome = distil(lambda: as_log(log), settings, target, Control(listener, stop))
        if outcome is None:
            raise RuntimeError("this process only assists another one, which has the summary")
        return Summary.load(target)


@contextmanager
def _folder(folder: str | Path | None) -> Iterator[Path]:
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="td3-") as temporary:
        yield Path(temporary)


@contextmanager
def _listener(progress: bool | Listener) -> Iterator[Listener]:
    if progress is True:
        with PhaseBars(Console()) as bars:
            yield bars.listen
    else:
        yield progress if callable(progress) else lambda _: None

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
from td3engine.pipeline.launch import launch
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

    Ctrl-C or SIGTERM stops the run after a checkpoint.

    Args:
        log: the path of a file, a DataFrame or Arrow table, or the result of `read_log`.
        preset: how much work to put in: `fast`, `balanced`, `quality`, or `auto` (by the log).
        config: settings that override the preset, nested, e.g. `{"summary": {"users": 50}}`.
        seed: same seed, log, settings and machine: same bytes. None: the configuration's.
        folder: for checkpoints while the run lasts, and in the end for the summary. The same call
            resumes an interrupted run from there. None: nothing is saved.
        progress: True shows progress bars; a function is called with every event
            (`td3engine.events`).

    Returns:
        The summary.

    Raises:
        LogError: the log cannot be read, or too little of it is left after the filter.
        pydantic.ValidationError: an unknown setting, or a value outside its limits.
        OutputExistsError: the folder holds a summary.
        CheckpointMismatchError: the folder's checkpoint belongs to another log or configuration.
        DeviceError: the device does not exist on this machine.
        DivergedError: training produced numbers that are not finite.
        RanksError, PeerLostError: under a launcher (torchrun), see `pipeline.launch`.
        RuntimeError: this process only assists another one.
        Interrupted: a signal stopped the run; the folder has a checkpoint.
    """
    overrides = dict(config or {})
    if seed is not None:
        overrides["seed"] = seed
    settings = build_config(preset, overrides)
    with _folder(folder) as target, _listener(progress) as listener, stop_signals() as stop:
        outcome = launch(lambda: as_log(log), settings, target, Control(listener, stop))
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

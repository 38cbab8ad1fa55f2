"""Distil a log into a folder, by this process or together with those that a launcher started."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from td3engine.config import DistillConfig
from td3engine.contract import MANIFEST_FILE
from td3engine.data.types import Interactions
from td3engine.errors import Interrupted, OutputExistsError
from td3engine.pipeline.run import Control, Outcome, Run
from td3engine.runtime.distributed import join
from td3engine.runtime.torch_setup import pick_device


def distil(
    read: Callable[[], Interactions], config: DistillConfig, folder: Path, control: Control
) -> Outcome | None:
    """Run one distillation.

    Args:
        read: gives the log; called once the folder is known to be free.
        config: all settings.
        folder: for the checkpoint, from which the same call goes on, and in the end the summary.
        control: how the run is watched and stopped.

    Returns:
        What the run made; None in a process that only assisted the main one.

    Raises:
        OutputExistsError: the folder holds a summary.
        (and what `Run.run` raises)
    """
    group = join(pick_device(config.device))
    if any(group.any(group.is_main and (folder / MANIFEST_FILE).exists())):
        raise OutputExistsError(f"{folder} holds a summary already; take another folder")
    log = read()
    if group.is_main:
        return Run(log, log.fingerprint(), config, folder, control, group).run()
    # A stop is the main process's to tell. A launcher would kill it, were this one to fail.
    silent = Control(listener=lambda _: None, stop=control.stop)
    with suppress(Interrupted):
        Run(log, log.fingerprint(), config, folder, silent, group).assist()
    return None

"""Distil a log into a folder, in one process or in all that a launcher has started."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from td3engine.config import DistillConfig
from td3engine.contract import MANIFEST_FILE
from td3engine.data.types import Interactions
from td3engine.errors import CheckpointMismatchError, Interrupted, OutputExistsError
from td3engine.pipeline.run import Control, Outcome, Run
from td3engine.runtime.distributed import join
from td3engine.runtime.torch_setup import pick_device


def launch(
    read: Callable[[], Interactions], config: DistillConfig, folder: Path, control: Control
) -> Outcome | None:
    """Run one distillation.

    Args:
        read: returns the log; called once the folder has turned out to be free.
        config: all settings.
        folder: for the checkpoint, from which the same call resumes, and in the end the summary.
        control: how the run is observed and stopped.

    Returns:
        The outcome; None in a process that only assists the main one.

    Raises:
        OutputExistsError: the folder holds a summary.
        LogError, CheckpointMismatchError, RanksError, PeerLostError, DivergedError, Interrupted: as
            `Run.run`.
    """
    group = join(pick_device(config.device))
    if any(group.any(group.is_main and (folder / MANIFEST_FILE).exists())):
        raise OutputExistsError(f"{folder} holds a summary already; take another folder")
    log = read()
    if group.is_main:
        try:
            return Run(log, log.fingerprint(), config, folder, control, group).run()
        except CheckpointMismatchError as mismatch:
            remedy = "delete it to begin anew, or take another folder"
            raise type(mismatch)(f"{mismatch}: {remedy}") from mismatch
    # The main process reports a stop. If this one failed, the launcher would kill the main process.
    silent = Control(listener=lambda _: None, stop=control.stop)
    with suppress(Interrupted):
        Run(log, log.fingerprint(), config, folder, silent, group).assist()
    return None

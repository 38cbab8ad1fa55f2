"""Points at which a process kills or stops itself: armed by a file in a folder, fired once."""

import os
import signal
from pathlib import Path

FOLDER_VARIABLE = "TD3_FAULTS_FOLDER"
FIRED = ".fired"


def fire(folder: Path, point: str) -> None:
    """Do to this process what the point is armed with, if it is."""
    fired = folder / f"{point}.{os.getpid()}{FIRED}"
    try:
        (folder / point).rename(fired)
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.Signals[fired.read_text()])

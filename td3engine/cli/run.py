"""`python -m td3engine.cli run`: the engine as a worker's child process.

Events are JSON lines on stdout; the exit code is the outcome (docs/contracts.md).
"""

import signal
import sys
from pathlib import Path

from pydantic import ValidationError

from td3engine.config import DistillConfig
from td3engine.contract import (
    ARTIFACT_FILES,
    CHECKPOINT_FILE,
    EXIT_INTERRUPTED,
    EXIT_UNUSABLE,
)
from td3engine.data.normalised import read_normalised
from td3engine.data.types import LogError
from td3engine.errors import CheckpointMismatchError, Interrupted, UnusableError
from td3engine.events import (
    ArtifactFile,
    CheckpointWritten,
    EngineEvent,
    Note,
    Phase,
    RunRefused,
    RunSucceeded,
    throttled,
    to_line,
)
from td3engine.pipeline.run import Control, Outcome, Run


def run_job(data: Path, config: Path, out: Path, checkpoint_seconds: float) -> int:
    """Run one job; returns the exit code. SIGTERM ends it early, after a checkpoint.

    Args:
        data: a normalised log.
        config: a DistillConfig as JSON.
        out: work folder, for the checkpoint and in the end for the summary.
        checkpoint_seconds: least time between two checkpoints.
    """
    stop_requested = False

    def request_stop(*_: object) -> None:
        nonlocal stop_requested
        stop_requested = True

    signal.signal(signal.SIGTERM, request_stop)
    control = Control(
        listener=throttled(_print_event),
        stop=lambda: stop_requested,
        on_checkpoint=_print_checkpoint,
        checkpoint_seconds=checkpoint_seconds,
    )
    try:
        settings = DistillConfig.model_validate_json(config.read_bytes())
        log = read_normalised(data)
        fingerprint = log.fingerprint()
        try:
            outcome = Run(log, fingerprint, settings, out, control).run()
        except CheckpointMismatchError as mismatch:
            # Another release, whose configuration has other fields, wrote it.
            _print_event(Note(f"{mismatch}; starting anew"))
            (out / CHECKPOINT_FILE).unlink()
            outcome = Run(log, fingerprint, settings, out, control).run()
    except Interrupted as stopped:
        _print_event(Note(str(stopped), level="info"))
        return EXIT_INTERRUPTED
    except LogError as error:
        return _refuse(error.code, error.message)
    except ValidationError as error:
        return _refuse("invalid_config", str(error))
    except UnusableError as error:
        return _refuse(error.code, str(error))
    _print_event(_success(out, outcome))
    return 0


def _success(out: Path, outcome: Outcome) -> RunSucceeded:
    artifacts = [
        ArtifactFile(name, str(out / name), media_type)
        for name, media_type in ARTIFACT_FILES.items()
    ]
    metrics = {
        "validation": outcome.manifest.validation,
        "rows": outcome.rows,
        "seconds": outcome.seconds,
    }
    return RunSucceeded(artifacts, metrics)


def _refuse(code: str, message: str) -> int:
    _print_event(RunRefused(code, message))
    return EXIT_UNUSABLE


def _print_checkpoint(path: Path, phase: Phase, step: int) -> None:
    _print_event(CheckpointWritten(str(path), phase, step))


def _print_event(event: EngineEvent) -> None:
    sys.stdout.write(to_line(event) + "\n")
    sys.stdout.flush()

"""The engine as a worker's child process: JSON lines on stdout, meaning by exit code.

The contract is docs/contracts.md, section 1.
"""

import json
import signal
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from td3engine.config import DistillConfig
from td3engine.data.normalised import read_normalised
from td3engine.data.types import LogError
from td3engine.errors import CheckpointMismatchError, Interrupted, UnusableError
from td3engine.events import Event, Note, Phase, PhaseStarted, Progress, throttled
from td3engine.pipeline.run import CHECKPOINT_FILE, Control, Outcome, Run
from td3engine.summary.bundle import MEDIA_TYPES

EXIT_UNUSABLE = 65  # EX_DATAERR: a retry cannot help
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: stopped after a checkpoint


def run_job(data: Path, config: Path, out: Path, checkpoint_seconds: float) -> int:
    """Run one job and return the exit code. SIGTERM asks for a checkpoint and an early end."""
    asked_to_stop = False

    def ask(*_: object) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    signal.signal(signal.SIGTERM, ask)
    control = Control(
        listener=throttled(_say_event),
        stop=lambda: asked_to_stop,
        checkpointed=_say_checkpoint,
        checkpoint_seconds=checkpoint_seconds,
    )
    try:
        settings = DistillConfig.model_validate_json(config.read_bytes())
        log = read_normalised(data)
        fingerprint = log.fingerprint()
        try:
            outcome = Run(log, fingerprint, settings, out, control).run()
        except CheckpointMismatchError as mismatch:
            # Written by another release, whose configuration has other fields: begin anew.
            _say("log", level="warning", message=f"{mismatch}; starting anew")
            (out / CHECKPOINT_FILE).unlink()
            outcome = Run(log, fingerprint, settings, out, control).run()
    except Interrupted as stopped:
        _say("log", level="info", message=str(stopped))
        return EXIT_INTERRUPTED
    except LogError as error:
        return _refuse(error.code, error.message)
    except ValidationError as error:
        return _refuse("invalid_config", str(error))
    except UnusableError as error:
        return _refuse(error.code, str(error))
    _say_result(out, outcome)
    return 0


def _refuse(code: str, message: str) -> int:
    _say("error", code=code, message=message)
    return EXIT_UNUSABLE


def _say_event(event: Event) -> None:
    match event:
        case PhaseStarted(phase):
            _say("phase", phase=phase)
        case Progress():
            _say(
                "progress",
                phase=event.phase,
                step=event.step,
                total=event.total,
                seconds_left=event.seconds_left,
                metrics=event.metrics,
            )
        case Note(message):
            _say("log", level="warning", message=message)


def _say_checkpoint(path: Path, phase: Phase, step: int) -> None:
    _say("checkpoint", path=str(path), phase=phase, step=step)


def _say_result(out: Path, outcome: Outcome) -> None:
    artifacts = [
        {"name": name, "path": str(out / name), "media_type": media_type}
        for name, media_type in MEDIA_TYPES.items()
    ]
    metrics = {
        "validation": outcome.manifest.validation,
        "rows": outcome.rows,
        "seconds": outcome.seconds,
    }
    _say("result", artifacts=artifacts, metrics=metrics)


def _say(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()

"""An engine for the service of these tests: it speaks the engine's protocol, and copies a summary.

The documents start some ten jobs on one log. A summary of it is made once, by the real engine;
every job gets that one (tests/e2e/test_service.py has the real engine in the service).

python -m tests.docs.ready_engine SUMMARY --data LOG --config CONFIG --out FOLDER ...
"""

import json
import shutil
import sys
from pathlib import Path

from td3engine.contract import SUMMARY_FILES


def main() -> None:
    """The events of a job that succeeds, and its files."""
    summary, out = Path(sys.argv[1]), Path(sys.argv[sys.argv.index("--out") + 1])
    _tell(event="phase", phase="distilling")
    metrics = {"ndcg@10": 0.1}
    _tell(event="progress", phase="distilling", step=4, total=4, seconds_left=0.0, metrics=metrics)
    for name in SUMMARY_FILES:
        shutil.copy(summary / name, out / name)
    artifacts = [{"name": n, "path": n, "media_type": kind} for n, kind in SUMMARY_FILES.items()]
    _tell(event="result", artifacts=artifacts, metrics={"validation": metrics})


def _tell(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

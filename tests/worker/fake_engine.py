"""Speaks the engine's protocol (docs/contracts.md, section 1) and does as the job's config says.

The config has `control`, a folder, and `scripts`: what to do at the first, second, ... start (the
last one again after that). A script is a list of steps, each a list of a word and its arguments.
Nothing here waits for time to pass: `wait` waits for a file in the control folder.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ARTIFACTS = {
    "summary.safetensors": "application/octet-stream",
    "items.parquet": "application/vnd.apache.parquet",
    "manifest.json": "application/json",
}


def say(event: str, **fields: Any) -> None:
    """Print an event."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


class Engine:
    """What it has done so far, and how it does the next step."""

    def __init__(self, out: Path, control: Path) -> None:
        self.out = out
        self.control = control
        self.checkpoint_path = out / "checkpoint.pt"
        self.done: list[int] = []
        self.stopped = False
        if self.checkpoint_path.exists():
            self.done = json.loads(self.checkpoint_path.read_text())
        self.resumed = list(self.done)

    def stop(self, *_: object) -> None:
        """SIGTERM came."""
        self.stopped = True

    def run(self, script: list[list[Any]]) -> int:
        """Do every step; returns the exit code."""
        for word, *arguments in script:
            getattr(self, f"do_{word}")(*arguments)
            if self.stopped:
                self.do_checkpoint()
                return 75
        return 0

    def do_phase(self, phase: str) -> None:
        say("phase", phase=phase)

    def do_step(self, number: int) -> None:
        """Work that is in the checkpoint is not done again."""
        if number not in self.done:
            self.done.append(number)
        say("progress", phase="distilling", step=number, total=3, seconds_left=float("nan"))

    def do_checkpoint(self) -> None:
        temporary = self.out / "checkpoint.tmp"
        temporary.write_text(json.dumps(self.done))
        temporary.replace(self.checkpoint_path)
        step = self.done[-1] if self.done else 0
        say("checkpoint", path=str(self.checkpoint_path), phase="distilling", step=step)

    def do_forget(self) -> None:
        """A checkpoint that is gone before the worker looks."""
        say("checkpoint", path="gone.pt", phase="distilling", step=1)

    def do_mark(self, name: str) -> None:
        (self.control / name).write_text(str(os.getpid()))

    def do_wait(self, name: str) -> None:
        while not (self.control / name).exists() and not self.stopped:
            time.sleep(0.01)

    def do_hang(self) -> None:
        """Not even SIGTERM ends this."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.do_mark("hanging")
        while True:
            signal.pause()

    def do_chatter(self) -> None:
        """Lines that are no events, one of them longer than a pipe or a worker likes."""
        sys.stdout.write('Loading...\n{"event": "unknown"}\n{"event": "phase"}\n[1, 2]\n\xff\n')
        sys.stdout.write("x" * 3_000_000 + "\n")
        sys.stdout.flush()

    def do_log(self, message: str) -> None:
        say("log", level="info", message=message)

    def do_complain(self, text: str) -> None:
        sys.stderr.write(text + "\n")

    def do_error(self, code: str, message: str) -> None:
        say("error", code=code, message=message)

    def do_exit(self, code: int) -> None:
        sys.exit(code)

    def do_kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def do_grandchild(self) -> None:
        """A process that holds on to stdout and would stay."""
        child = subprocess.Popen(["sleep", "600"])
        (self.control / "grandchild").write_text(str(child.pid))

    def do_result(self, lie: str = "") -> None:
        artifacts = []
        for name, media_type in ARTIFACTS.items():
            (self.out / name).write_text(f"{name} {self.done}")
            artifacts.append({"name": name, "path": name + lie, "media_type": media_type})
        say("result", artifacts=artifacts, metrics={"ndcg@10": 0.25, "bad": float("inf")})


def main() -> int:
    """Find the script for this start, and follow it."""
    parser = argparse.ArgumentParser()
    for option in ("--data", "--config", "--out", "--checkpoint-seconds"):
        parser.add_argument(option, required=True)
    options = parser.parse_args()
    config = json.loads(Path(options.config).read_text())
    control = Path(config["control"])
    engine = Engine(Path(options.out), control)
    signal.signal(signal.SIGTERM, engine.stop)
    starts = control / "starts"
    number = len(starts.read_text().splitlines()) if starts.exists() else 0
    start = {
        "pid": os.getpid(),
        "group": os.getpgid(0),
        "parent": os.getppid(),
        "resumed": engine.resumed,
        "data": Path(options.data).read_text(),
        "secrets": [name for name in os.environ if name.endswith(("_URL", "_SECRET"))],
    }
    with starts.open("a") as file:
        file.write(json.dumps(start) + "\n")
    scripts = config["scripts"]
    return engine.run(scripts[min(number, len(scripts) - 1)])


if __name__ == "__main__":
    sys.exit(main())

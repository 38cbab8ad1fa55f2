"""An engine whose summary is the end of a chain of hashes that begins with the log and the seed.

It speaks the engine's protocol (docs/contracts.md, section 1), and a step takes a moment. Whoever
loses a step, does one twice, or goes on from another job's checkpoint gets other bytes. It notes
each of its starts in the folder that is its first argument. Standard library only: it starts fast.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

STEP_SECONDS = 0.05
CHECKPOINT_STEPS = 4
PADDING = 1_300_000  # more than one chunk of a blob
NAMES = {
    "summary.safetensors": "application/octet-stream",
    "items.parquet": "application/vnd.apache.parquet",
    "manifest.json": "application/json",
}


def steps(seed: int) -> int:
    """How long the chain is."""
    return 8 + seed % 24


def start(data: bytes, seed: int) -> str:
    """The chain's first link."""
    return hashlib.sha256(hashlib.sha256(data).digest() + str(seed).encode()).hexdigest()


def advance(link: str) -> str:
    """The next link."""
    return hashlib.sha256(link.encode()).hexdigest()


def artifacts(link: str, seed: int) -> dict[str, bytes]:
    """What the end of the chain makes; some of it is large."""
    summary = link.encode() * (PADDING // len(link) if seed % 3 == 0 else 1)
    return {
        "summary.safetensors": summary,
        "items.parquet": b"items " + link.encode(),
        "manifest.json": json.dumps({"end": link}).encode(),
    }


def expected(data: bytes, seed: int) -> dict[str, bytes]:
    """The artifacts of a job that nobody disturbed."""
    link = start(data, seed)
    for _ in range(steps(seed)):
        link = advance(link)
    return artifacts(link, seed)


def say(event: str, **fields: Any) -> None:
    """Print an event."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


class Chain:
    """The link it has reached, kept in a checkpoint every few steps."""

    def __init__(self, data: bytes, seed: int, out: Path) -> None:
        self.seed = seed
        self.out = out
        self.path = out / "checkpoint.pt"
        self.step, self.link = 0, start(data, seed)
        self.stopped = False
        if self.path.exists():
            kept = json.loads(self.path.read_text())
            self.step, self.link = kept["step"], kept["link"]

    def stop(self, *_: object) -> None:
        """SIGTERM came."""
        self.stopped = True

    def run(self) -> int:
        """Go on to the end; returns the exit code."""
        say("phase", phase="distilling")
        while self.step < steps(self.seed):
            if self.stopped:
                self.checkpoint()
                return 75
            time.sleep(STEP_SECONDS)
            self.step, self.link = self.step + 1, advance(self.link)
            say("progress", phase="distilling", step=self.step, total=steps(self.seed))
            if self.step % CHECKPOINT_STEPS == 0:
                self.checkpoint()
        for name, content in artifacts(self.link, self.seed).items():
            (self.out / name).write_bytes(content)
        files = [{"name": name, "path": name, "media_type": NAMES[name]} for name in NAMES]
        say("result", artifacts=files, metrics={})
        return 0

    def checkpoint(self) -> None:
        """Write it whole or not at all."""
        padding = "x" * PADDING if self.seed % 3 == 0 else ""
        part = self.out / "checkpoint.part"
        part.write_text(json.dumps({"step": self.step, "link": self.link, "padding": padding}))
        part.replace(self.path)
        say("checkpoint", path=str(self.path), phase="distilling", step=self.step)


def main() -> int:
    """Run the chain of one job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("journal", type=Path)
    for option in ("--data", "--config", "--out"):
        parser.add_argument(option, type=Path, required=True)
    parser.add_argument("--checkpoint-seconds", required=True)
    options = parser.parse_args()
    seed = json.loads(options.config.read_text())["seed"]
    chain = Chain(options.data.read_bytes(), seed, options.out)
    signal.signal(signal.SIGTERM, chain.stop)
    job_id = options.out.parent.name.rpartition("-")[0]  # the work folder is JOB-RANDOM
    with (options.journal / job_id).open("a") as journal:
        journal.write(f"{os.getpid()} {chain.step}\n")
    return chain.run()


if __name__ == "__main__":
    sys.exit(main())

"""Small whole runs that cross every part of the engine, and a digest of each thing they make.

A commit that only moves or renames changes no digest. Arithmetic differs between processors in its
last bits, so digests compare within a machine: `probe` tells whether two machines are alike.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typer.testing import CliRunner

from td3engine.cli.main import app
from td3engine.config import DistillConfig
from td3engine.config.presets import merge
from td3engine.data.reading import read_log
from td3engine.errors import Interrupted
from td3engine.pipeline.run import Control, Run
from td3engine.summary.bundle import load_bundle
from tests.td3engine.small import PAPER, small_config, write_small_log

FINGERPRINT = "f" * 64
STOP_AT = ("distilling", 3)
CHECKPOINTS = {("pretraining", 2): "teacher checkpoint", STOP_AT: "distilling checkpoint"}

CASES: dict[str, dict[str, Any]] = {
    "shared-items": {},
    "from-scratch": {"mode": "from-scratch"},
    "gru4rec": {"backbone": {"name": "gru4rec"}},
    "narm": {"backbone": {"name": "narm"}},
    "esasrec": {"backbone": {"name": "esasrec", "layers": 2, "heads": 2}},
    "hstu": {"backbone": {"name": "hstu", "layers": 2, "heads": 2}},
    "bert4rec": {"backbone": {"name": "bert4rec"}},
    "bert4rec-from-scratch": {"mode": "from-scratch", "backbone": {"name": "bert4rec"}},
    "soft": {"summary": {"inputs": "soft"}},
    "paper": PAPER,
    "paper-from-scratch": merge(PAPER, {"mode": "from-scratch"}),
    "two-layers-two-heads": merge(
        PAPER,
        {
            "backbone": {"layers": 2, "heads": 2},
            "learner": {"objective": "all-positions"},
            "summary": {"targets": "next", "start": "random"},
            "outer": {"recompute": True, "normalise": False, "among": "unseen"},
        },
    ),
    "two-learners": {"outer": {"learners": 2, "start": "teacher"}},
    "sampled-softmax": merge(
        PAPER,
        {
            "teacher": {"softmax": "sampled", "negatives": 40},
            "outer": {"softmax": "sampled", "negatives": 40},
        },
    ),
}
EXPORTS = {"soft": ["--top-k", "20"], "csv": ["--copies", "2"], "inter": ["--copies", "2"]}


def probe() -> str:
    """Digest of a few operations: the same on machines whose arithmetic is alike."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 40, 33, generator=draw)
    parts = [x @ y.T, x.softmax(-1), x.erf(), x.exp().sum(-1), x.cumsum(0), torch.linalg.svd(x)[0]]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:16]


def digests_and_figures(folder: Path) -> tuple[dict[str, str], dict[str, float]]:
    """Run all cases below `folder`.

    Returns:
        The sha256 (16 digits) of each thing made, and figures that are close on any machine.
    """
    digests: dict[str, str] = {}
    figures: dict[str, float] = {}
    log = write_small_log(folder / "log.csv")
    for name, over in CASES.items():
        for part, value in _run_case(log, small_config(**over), folder / name):
            if isinstance(value, float):
                figures[f"{name}: {part}"] = value
            else:
                digests[f"{name}: {part}"] = value
    for kind, options in EXPORTS.items():
        out = folder / f"export.{kind}"
        command = ["export", str(folder / "shared-items"), "--out", str(out), "--format", kind]
        done = CliRunner().invoke(app, [*command, *options])
        if done.exit_code:
            raise RuntimeError(f"td3 {' '.join(command)}: {done.output}")
        digests[f"export {kind}"] = _sha(out.read_bytes())
    return digests, figures


def _run_case(log: Path, config: DistillConfig, folder: Path) -> Iterator[tuple[str, Any]]:
    """Run whole, then again with a stop in the middle: the bundle's bytes must be the same."""
    seen: dict[str, str] = {}
    at = ("", 0)

    def on_checkpoint(path: Path, phase: str, step: int) -> None:
        nonlocal at
        at = phase, step
        if at in CHECKPOINTS:
            seen[CHECKPOINTS[at]] = _checkpoint_digest(path)

    def run(out: Path, *, stops: bool) -> None:
        control = Control(
            listener=lambda _: None,
            stop=lambda: stops and at == STOP_AT,
            on_checkpoint=on_checkpoint,
            checkpoint_seconds=0.0,
        )
        Run(read_log(log), FINGERPRINT, config, out, control).run()

    run(folder, stops=False)
    yield from seen.items()
    whole = dict(_bundle(folder))
    yield from whole.items()
    stopped = folder / "stopped"
    try:
        run(stopped, stops=True)
    except Interrupted:
        at = ("", 0)
        run(stopped, stops=False)
    if dict(_bundle(stopped)) != whole:
        raise AssertionError(f"{folder.name}: a resumed run gave other bytes")


def _bundle(folder: Path) -> Iterator[tuple[str, Any]]:
    factors = (folder / "summary.safetensors").read_bytes()
    yield "factors", _sha(factors)
    yield "items", _sha((folder / "items.parquet").read_bytes())
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for part in ("results", "validation", "statistics", "config"):
        yield part, _sha(json.dumps(manifest[part], sort_keys=True).encode())
    summary = load_bundle(folder).factors
    for name in ("labels", "U", "T", "G", "Y", "V"):
        if (part := getattr(summary, name, None)) is not None:
            yield f"norm of {name}", float(part.double().norm()) / math.sqrt(part.numel())


def _checkpoint_digest(path: Path) -> str:
    """Of all that a checkpoint holds but its wall times and its configuration's text."""
    stored = torch.load(path, weights_only=True)
    stored.pop("config")
    whole = hashlib.sha256()
    for part in _flat(stored):
        whole.update(part)
    return whole.hexdigest()[:16]


def _flat(tree: Any) -> Iterator[bytes]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key != "seconds":
                yield repr(key).encode()
                yield from _flat(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _flat(value)
    elif isinstance(tree, Tensor):
        yield repr((tuple(tree.shape), tree.dtype)).encode()
        yield tree.detach().contiguous().numpy().tobytes()
    else:
        yield repr(tree).encode()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]

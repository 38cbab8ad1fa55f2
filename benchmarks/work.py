"""The same distillation for the engine and for the textbook: log, sizes, teacher, real batches."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.datasets import DATASETS
from benchmarks.study import prefix_windows
from benchmarks.study_results import processor
from benchmarks.textbook import RealRows, SASRec, TextbookTD3
from td3engine.config import DistillConfig
from td3engine.config.presets import build_config, merge
from td3engine.data.split import Split
from td3engine.data.windows import training_windows
from td3engine.models.backbone import Backbone
from td3engine.models.registry import build_backbone
from td3engine.models.sequences import padded_sequences
from td3engine.models.trained_model import TrainedModel
from td3engine.outer_loop.distillation import Distillation
from td3engine.ranking.holdout import Holdouts
from td3engine.teacher.training import TrainedOnLog

# The published script's settings for ML-100k.
REAL_TARGETS = 4096
PUBLISHED: dict[str, Any] = {
    "summary": {"users": 30, "length": 50, "user_rank": 8, "time_rank": 8, "targets": "next"},
    "learner": {
        "steps": 200,
        "batch": 15,
        "lr": 0.005,
        "schedule": "constant",
        "beta2": 0.999,
        "objective": "last-and-augmented",
        "augmented": 1,
    },
    "outer": {
        "window": 40,
        "lr": 0.03,
        "normalise": False,
        "feature_weight": 1.0,
        "teacher_share": 0.0,
        "among": "all",
        "steps": 1_000_000,
    },
}
RANDOM_USERS, RANDOM_EVENTS = 1000, 102
TABLE_STD = 0.1
STRATA = 4  # ages that the textbook's windows start at, in turn


def sizes(dataset: str) -> dict[str, Any]:
    """Settings of the model and the summary of the sizes that we use for this log."""
    own = DATASETS[dataset].settings
    return {
        "data": own.get("data", {}),
        "backbone": own.get("backbone", {}),
        "summary": {name: own["summary"][name] for name in ("users", "length")},
        "learner": {"batch": own.get("learner", {}).get("batch", 15)},
    }


def published(dataset: str, over: Mapping[str, Any]) -> DistillConfig:
    """The published settings, for a model and a summary of our sizes."""
    return build_config("balanced", merge(merge(PUBLISHED, sizes(dataset)), dict(over)))


def random_log(n_items: int) -> Split:
    """Users who meet items at random."""
    events = RANDOM_USERS * RANDOM_EVENTS
    drawn = np.random.default_rng(0).integers(n_items, size=events, dtype=np.int32)
    return Split(
        histories=drawn,
        offsets=np.arange(0, events + 1, RANDOM_EVENTS, dtype=np.int64),
        times=np.arange(events, dtype=np.int64),
        item_ids=[str(item) for item in range(n_items)],
        user_ids=[str(user) for user in range(RANDOM_USERS)],
    )


@dataclass(frozen=True)
class Work:
    """What is distilled, and how. The engine's settings hold for the textbook too.

    Attributes:
        split: the log.
        config: the settings; their `outer.batch` is replaced by as many windows as hold
            `real_targets` targets on average.
        teacher: of the feature alignment, and owner of the item table.
        device: where to compute.
        real_targets: real events that an outer step predicts.
    """

    split: Split
    config: DistillConfig
    teacher: TrainedOnLog
    device: torch.device
    real_targets: int = REAL_TARGETS

    @classmethod
    def untrained(cls, split: Split, config: DistillConfig, device: torch.device) -> "Work":
        """With a random teacher: speed and memory do not depend on what it has learnt."""
        draw = torch.Generator(device.type).manual_seed(0)
        backbone = build_backbone(config.learner_backbone, config.data.max_history)
        encoder_P = backbone.initial(draw)
        shape = split.n_items, config.backbone.hidden
        table_ND = torch.randn(shape, generator=draw, device=device).mul_(TABLE_STD)
        teacher = TrainedOnLog(
            TrainedModel(backbone, encoder_P, table_ND),
            encoder_P[None],
            validation=0.0,
            seconds=0.0,
        )
        return cls(split, config, teacher, device)

    @cached_property
    def targets_per_window(self) -> float:
        """Targets of a real user window, on average."""
        rng = np.random.default_rng(0)
        windows = training_windows(self.split, self.config.learner_history, rng)
        return float((windows.end - windows.start - 1).mean())

    @cached_property
    def engine_config(self) -> DistillConfig:
        batch = int(np.ceil(self.real_targets / self.targets_per_window))
        outer = self.config.outer.model_copy(update={"batch": batch})
        return self.config.model_copy(update={"outer": outer})

    @cached_property
    def backbone(self) -> Backbone:
        return build_backbone(self.config.backbone, self.config.data.max_history)

    def engine(self, config: DistillConfig | None = None) -> Distillation:
        """The engine, at its first outer step."""
        config = config or self.engine_config
        holdout = Holdouts(self.split, config.data).validation(config.learner_history)
        return Distillation(self.split, config, self.backbone, self.teacher, holdout, self.device)

    def textbook(self, factors: Sequence[Tensor], seed: int = 0) -> TextbookTD3:
        """The textbook, at its first outer step.

        Windows start uniformly over all ages that leave room for one, spread evenly, so that the
        mean of a few outer steps is near that of many.
        """
        latest = self.config.learner.steps - self.config.outer.window
        rng = np.random.default_rng(seed)
        strata = (np.arange(STRATA) + rng.random(STRATA)) / STRATA
        starts = np.floor(rng.permutation(strata) * (latest + 1)).astype(np.int64)
        history = self.config.data.max_history
        learner, teacher = (
            SASRec(self.config.backbone, history).to(self.device, self.item_table.dtype)
            for _ in range(2)
        )
        load(teacher, self.backbone.named(self.teacher.model.parameters))
        return TextbookTD3(self.config, factors, self.item_table, learner, teacher, starts)

    @property
    def item_table(self) -> Tensor:
        """The item table (n, d)."""
        return self.teacher.model.table[:, : self.config.backbone.hidden]

    def real_rows(self, rng: np.random.Generator) -> RealRows:
        """A textbook's real batch: one target a row."""
        windows = self._prefixes
        chosen = rng.choice(len(windows), min(self.real_targets, len(windows)), replace=False)
        rows = padded_sequences(self.split, windows.start[chosen], windows.end[chosen])
        items, lengths = (part.to(self.device) for part in rows)
        targets = items.gather(1, lengths[:, None] - 1).squeeze(1)
        return RealRows(items[:, :-1], lengths - 1, targets)

    @cached_property
    def _prefixes(self) -> Any:
        return prefix_windows(self.split, self.config.learner_history)


def load(module: SASRec, named: dict[str, Tensor]) -> None:
    """Give the textbook's model the weights of the engine's."""
    module.load_state_dict({_module_name(name): value for name, value in named.items()})


def _module_name(name: str) -> str:
    """The engine's `0_attention_norm_weight` is the textbook's `layers.0.attention_norm.weight`."""
    if name == "position":
        return name
    layer, _, rest = name.partition("_")
    prefix, rest = (f"layers.{layer}.", rest) if layer.isdigit() else ("", name)
    for kind in ("weight", "bias"):
        if rest.endswith("_" + kind):
            return f"{prefix}{rest.removesuffix('_' + kind)}.{kind}"
    return f"{prefix}{rest}.weight"


def machine(device: torch.device) -> dict[str, Any]:
    """What figures were taken on."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def memory_mib(field: str) -> float:
    """`VmHWM` (peak) or `VmRSS` (now) of this process, in MiB.

    Not `getrusage`: a child's ru_maxrss begins at what its parent held when it was started.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")

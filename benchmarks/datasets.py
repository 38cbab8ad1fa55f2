"""The public logs of the benchmarks, and the size of a summary of each."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from td3engine.config import BackboneName, DistillConfig, Mode
from td3engine.config.presets import build_config, merge
from td3engine.data.movielens import cache_folder, fetch_ml100k
from td3engine.data.reading import read_log
from td3engine.data.types import Interactions
from td3engine.models.registry import backbone_spec


@dataclass(frozen=True)
class Dataset:
    """A log and the settings of the method that depend on it.

    Attributes:
        file: name in the folder of logs; None is fetched.
        settings: laid over a preset; sizes as in the published scripts where those have the set.
        by_mode: laid over that, for summaries distilled for a mode.
        replicates: how many times teacher and summary are made, with a seed of their own each;
            learners take turns with them.
    """

    file: str | None
    settings: dict[str, Any]
    by_mode: dict[Mode, dict[str, Any]] = field(default_factory=dict)
    replicates: int = 1

    def config(self, backbone: BackboneName, mode: Mode, seed: int = 0) -> DistillConfig:
        """Settings of a distillation with this backbone for this mode."""
        over = merge(self.settings, self.by_mode.get(mode, {}))
        requested = {"backbone": {"name": backbone}, "mode": mode, "seed": seed}
        own = merge(merge(over, {"learner": dict(backbone_spec(backbone).learner)}), requested)
        return build_config("quality", merge(own, BY_BACKBONE.get(backbone, {})))

    def read(self, folder: Path) -> Interactions:
        """The log."""
        return read_log(folder / self.file if self.file else fetch_ml100k(cache_folder()))


def _size(users: int, length: int, rank: int) -> dict[str, Any]:
    return {"users": users, "length": length, "user_rank": rank, "time_rank": rank}


BY_BACKBONE: dict[BackboneName, dict[str, Any]] = {
    "narm": {"teacher": {"lr": 0.005}},
    "bert4rec": {"teacher": {"lr": 0.005, "patience": 15}},
}

# Sparse logs want more dropout (chosen on magazine's validation, 0.169 against 0.164).
SPARSE = {"dropout": 0.5}

# Windows of 20, where those of 40 take too long here.
SHORT: dict[str, Any] = {"outer": {"window": 20}}

# Nine targets a sequence, where all positions do; such steps are noisier, and want a lower rate.
FEW: dict[str, Any] = {"learner": {"objective": "last-and-augmented"}, "outer": {"lr": 0.03}}

SCRATCH: dict[str, Any] = {"outer": {"steps": 200, "validate_every": 50}}

DATASETS: dict[str, Dataset] = {
    "ml-100k": Dataset(
        None,
        {"summary": _size(30, 50, 16), "outer": {"steps": 200, "validate_every": 50}},
        {"from-scratch": SCRATCH},
        replicates=1,
    ),
    "ml-1m": Dataset(
        "ml-1m.csv.gz",
        # Full ranks keep the teacher's labels whole, and want a low outer rate (docs/notebook.md).
        {
            "backbone": {"dropout": 0.1},
            "summary": {"users": 50, "length": 50, "user_rank": 50, "time_rank": 100},
            "learner": {"batch": 25, "steps": 800, "scratch_steps": 800},
            "outer": {"lr": 0.003, "validate_every": 25},
        },
        {
            "shared-items": {"outer": {"steps": 150}},
            # Steps from scratch cost several times those for shared items here.
            "from-scratch": {"outer": {"steps": 50, "window": 20}},
        },
    ),
    "amazon2018-magazine": Dataset(
        "amazon2018-magazine.csv.gz",
        {"summary": _size(30, 20, 16), "backbone": SPARSE, "outer": {"steps": 200}},
        {"from-scratch": SCRATCH},
        replicates=2,
    ),
    # Not one of the paper's: the size is our choice.
    "amazon2014-beauty-5core": Dataset(
        "amazon2014-beauty-5core.csv.gz",
        merge(
            SHORT,
            {
                "summary": _size(100, 20, 16),
                "learner": {"batch": 25},
                "backbone": SPARSE,
                "outer": {"steps": 200, "validate_every": 50},
            },
        ),
        {"from-scratch": {"outer": {"steps": 150}}},
    ),
    "epinions-ordered": Dataset(
        "epinions-ordered.csv.gz",
        {
            "summary": _size(15, 30, 16),
            "backbone": SPARSE,
            # Over all items an epoch is some ten times as long (docs/notebook.md).
            "teacher": {
                "softmax": "sampled",
                "negatives": 2048,
                "validate_every": 1,
                "patience": 5,
            },
            "outer": {"steps": 300, "softmax": "sampled", "validate_every": 50},
        },
        # From scratch steps are over all items.
        {
            "from-scratch": merge(
                merge(SHORT, FEW),
                {
                    # Chosen on validation: learners from scratch want less (docs/notebook.md).
                    "backbone": {"dropout": 0.2},
                    "teacher": {"dropout": SPARSE["dropout"]},
                    "outer": {"shared_steps": 300, "steps": 340, "validate_every": 20},
                },
            )
        },
    ),
}

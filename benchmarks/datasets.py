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


def _size(users: int, length: int) -> dict[str, Any]:
    """What the default preset settles on for the log, as a run's manifest has it."""
    return {"auto": [], "summary": {"users": users, "length": length}, "outer": {"steps": 0}}


BY_BACKBONE: dict[BackboneName, dict[str, Any]] = {
    "narm": {"teacher": {"lr": 0.005}},
    "bert4rec": {"teacher": {"lr": 0.005, "patience": 15}},
}

# Sparse logs want more dropout (chosen on magazine's validation, 0.169 against 0.164).
SPARSE = {"dropout": 0.5}

DATASETS: dict[str, Dataset] = {
    "ml-100k": Dataset(None, _size(28, 50)),
    "ml-1m": Dataset("ml-1m.csv.gz", merge(_size(100, 50), {"backbone": {"dropout": 0.1}})),
    "amazon2018-magazine": Dataset(
        "amazon2018-magazine.csv.gz", merge(_size(100, 20), {"backbone": SPARSE})
    ),
    "amazon2014-beauty-5core": Dataset(
        "amazon2014-beauty-5core.csv.gz",
        merge(_size(68, 20), {"backbone": SPARSE, "summary": {"table_step": 0.25}}),
    ),
    "epinions-ordered": Dataset(
        "epinions-ordered.csv.gz",
        merge(
            _size(100, 30),
            {
                "backbone": SPARSE,
                # Over all items an epoch is some ten times as long (docs/notebook.md).
                "teacher": {
                    "softmax": "sampled",
                    "negatives": 2048,
                    "validate_every": 1,
                    "patience": 5,
                },
            },
        ),
    ),
}

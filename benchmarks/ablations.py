"""What each part of the method is worth: python -m benchmarks.ablations --data LOGS

Every row changes one thing of one base setting, distils again and measures learners on test: for
`shared-items`, and in the family `scratch` for learners from scratch, with a base row of its own.
Finished rows are kept. Where the base uses a knob's value already, the base's row stands for it.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.datasets import DATASETS
from benchmarks.study import CPU, Study
from td3engine.config import DistillConfig, Mode, Preset
from td3engine.config.presets import build_config, merge
from td3engine.evaluation.baselines import summary_rows
from td3engine.evaluation.benchmark import Benchmark
from td3engine.models.registry import build_backbone
from td3engine.outer_loop.distillation import Distillation
from td3engine.outer_loop.learner_pool import LearnerPools, PooledLearner
from td3engine.ranking.holdout import Holdouts
from td3engine.runtime.torch_setup import configure
from td3engine.summary.tucker import query

# `quality` is what the quality tables are made with.
FAMILIES = ("base", "parts", "preset", "window", "users", "steps", "scratch", "learners")
FEW_TARGETS_RATE = 0.03
BASE_BETA2 = 0.999  # as in the paper; the default is a row
DEFAULT_BETA2: dict[str, Any] = {"learner": {"beta2": 0.95}}
# Learners an outer step, with rates to try; as many windows in all, so as much time.
WINDOWS, LEARNERS = 400, {1: (0.03, 0.06), 4: (0.06, 0.12), 16: (0.12,)}
PRESETS: tuple[Preset, ...] = ("fast", "balanced")


@dataclass(frozen=True)
class Variant:
    """One change: settings, or another way to distil."""

    family: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    distillation: type[Distillation] = Distillation


class FirstWindowPools(LearnerPools):
    """Every window is the first of a new learner's training."""

    def pick(self, learner: int, place: int, done: int) -> PooledLearner:  # noqa: ARG002
        fresh = self.fresh(learner, self.config.outer.pool + done, staggered=False)
        return PooledLearner(fresh.state, warmup_steps=0)


class LastWindowPools(LearnerPools):
    """Every window is the last of a new learner's training."""

    def pick(self, learner: int, place: int, done: int) -> PooledLearner:  # noqa: ARG002
        fresh = self.fresh(learner, self.config.outer.pool + done, staggered=False)
        return PooledLearner(fresh.state, self.inner_steps - self.config.outer.window)


class FirstWindow(Distillation):
    """Windows at the start of training."""

    pools_class = FirstWindowPools


class LastWindow(Distillation):
    """Windows at the end of training; the steps before are not differentiated."""

    pools_class = LastWindowPools


def variants(base: DistillConfig) -> list[Variant]:
    """All rows; the free factors have a place of their own for each position."""
    free = {"user_rank": base.summary.users, "time_rank": 2 * base.summary.length}
    found = [
        Variant("base", "base"),
        Variant("parts", "targets are what is read next", {"summary": {"targets": "next"}}),
        Variant("parts", "free queries, no Tucker factors", {"summary": free}, FreeQueries),
        Variant("parts", "start from noise", {"summary": {"start": "random"}}),
        Variant("parts", "no feature alignment", {"outer": {"feature_weight": 0}}),
        Variant("parts", "no augmentation, outer rate 0.03", _augmented(0)),
        Variant("parts", "the paper's one augmented target, outer rate 0.03", _augmented(1)),
        Variant("parts", "eight augmented targets, outer rate 0.03", _augmented(8)),
        Variant("parts", "constant learner rate", {"learner": {"schedule": "constant"}}),
        Variant("parts", "real targets compete with unseen items", {"outer": {"among": "unseen"}}),
        Variant("parts", "gradients clipped, not normalised", {"outer": {"normalise": False}}),
        Variant("parts", "outer rate 0.03", {"outer": {"lr": 0.03}}),
        Variant("parts", "learners start from the teacher", {"outer": {"start": "teacher"}}),
        Variant("parts", "second moment decays at 0.95", DEFAULT_BETA2),
        Variant("window", "window at the start", {}, FirstWindow),
        Variant("window", "window at the end", {}, LastWindow),
    ]
    found += [
        Variant("preset", f"preset {preset}", {"outer": build_config(preset).outer.model_dump()})
        for preset in PRESETS
    ]
    found += [
        Variant("window", f"window of {window}", {"outer": {"window": window}})
        for window in (5, 40, 80)
    ]
    for users in (5, 10, 50, 100):
        size = {"summary": {"users": users}, "learner": {"batch": -(-users // 2)}}
        found.append(Variant("users", f"{users} sequences", size))
    found += [
        Variant("steps", f"{steps} outer steps", {"outer": {"steps": steps}})
        for steps in (25, 50, 200, 400)
    ]
    for learners, rates in LEARNERS.items():
        steps = WINDOWS // learners
        taken = {"learners": learners, "steps": steps, "validate_every": max(steps // 8, 5)}
        found += [
            Variant(
                "learners",
                f"{learners} learner{'s' * (learners > 1)} a step, {steps} outer steps at {rate}",
                merge(DEFAULT_BETA2, {"outer": taken | {"lr": rate}}),
            )
            for rate in rates
        ]
    scratch: dict[str, dict[str, Any]] = {
        "from scratch": {},
        "from scratch, targets are what is read next": {"summary": {"targets": "next"}},
        "from scratch, second moment decays at 0.95": DEFAULT_BETA2,
        "half of a real target is the next item": {"outer": {"teacher_share": 0.5}},
        "real targets are next items": {"outer": {"teacher_share": 0.0}},
    }
    return found + [
        Variant("scratch", name, {"mode": "from-scratch", **change})
        for name, change in scratch.items()
    ]


def _augmented(count: int) -> dict[str, Any]:
    """Targets of a step: each sequence's last position, and so many others; at their own rate."""
    learner = {"objective": "last-and-augmented", "augmented": count}
    return {"learner": learner, "outer": {"lr": FEW_TARGETS_RATE}}


class FreeQueries(Distillation):
    """C itself is trained: U and T are identities, G is C."""

    def _distil_for(self, mode: Mode) -> None:
        users, length = self.config.summary.users, self.config.summary.length
        C_UTD = query(*self.factors).detach()
        read, *predicted = torch.eye(C_UTD.shape[1]).split(length)
        self.factors = [torch.eye(users), read, C_UTD.requires_grad_(), *predicted]
        super()._distil_for(mode)


def measure(study: Study, base: dict[str, Any], variant: Variant, seeds: int) -> dict[str, Any]:
    """Distil and measure one variant."""
    config = DistillConfig.model_validate(merge(base, variant.settings))
    history = config.data.max_history
    teacher = study.full("sasrec", 0)
    holdout = Holdouts(study.split, config.data).validation(config.learner_history)
    backbone = build_backbone(config.learner_backbone, history)
    distillation = variant.distillation(study.split, config, backbone, teacher, holdout, CPU)
    began = time.perf_counter()
    for _ in distillation.steps():
        pass
    spent = time.perf_counter() - began
    summary, chosen = distillation.result()
    benchmark = Benchmark.prepare(study.split, config, CPU)
    rows = summary_rows(benchmark, "summary", summary, config.mode, range(1, seeds + 1))
    return {
        **rows[0],
        "dataset": study.dataset,
        "family": variant.family,
        "name": variant.name,
        "users": config.summary.users,
        "steps": config.outer.steps,
        "validation": chosen["ndcg@10"],
        "distil_seconds": spent,
        "numbers_learned": sum(each.numel() for each in distillation.factors if each.requires_grad),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the logs")
    parser.add_argument("--dataset", nargs="+", choices=DATASETS, default=["ml-100k"])
    parser.add_argument("--family", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="outer steps of the base setting")
    parser.add_argument("--json", type=Path, default=Path("docs/results/ablations.json"))
    parser.add_argument("--work", type=Path, default=Path("quality-work"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    configure()
    content = json.loads(options.json.read_text()) if options.json.exists() else {"rows": []}
    rows = content["rows"]
    say: Callable[[str], None] = print
    for dataset in options.dataset:
        study = Study(dataset, options.data, options.work, say)
        given = DATASETS[dataset].config("sasrec", "shared-items")
        # The sizes of the log, and the windows of `balanced`.
        balanced = {"outer": {"steps": options.steps, "window": 20, "validate_every": 25}}
        adam = {"learner": {"beta2": BASE_BETA2}}
        base = merge(given.model_dump(mode="json"), merge(balanced, adam))
        for variant in variants(DistillConfig.model_validate(base)):
            if variant.family not in options.family:
                continue
            if any((r["dataset"], r["name"]) == (dataset, variant.name) for r in rows):
                continue
            row = measure(study, base, variant, options.seeds)
            rows.append(row)
            print(f"{dataset}: {variant.name}: {row['ndcg@10']:.4f}", flush=True)
            options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""A log's holdout sets, and the learners' metrics on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from td3engine.config import DistillConfig
from td3engine.data.split import Split, split_log
from td3engine.data.types import Interactions
from td3engine.errors import WrongLogError
from td3engine.models.backbone import Backbone
from td3engine.models.registry import build_backbone
from td3engine.models.trained_model import TrainedModel
from td3engine.ranking.holdout import Holdouts, HoldoutSet
from td3engine.ranking.metrics import Metrics, RankingModel, evaluate_all, validation_ndcg
from td3engine.ranking.protocols import Protocol, available_protocols, protocol_notes
from td3engine.summary.bundle import Bundle


@dataclass(frozen=True)
class Benchmark:
    """A split log on which learners are validated and measured.

    Attributes:
        split: the log.
        config: settings of the learners.
        backbone: of the learners, untrained.
        holdouts: the log's holdout sets.
        validation, test: those of models with the learners' longest history.
        protocols: those that have a question about the test set.
        device: where learners train.
        on_step: called every few steps of a learner.
    """

    split: Split
    config: DistillConfig
    backbone: Backbone
    holdouts: Holdouts
    validation: HoldoutSet
    test: HoldoutSet
    protocols: Sequence[Protocol]
    device: torch.device
    on_step: Callable[[], None]

    @classmethod
    def prepare(
        cls,
        split: Split,
        config: DistillConfig,
        device: torch.device,
        on_step: Callable[[], None] = lambda: None,
        holdouts: Holdouts | None = None,
    ) -> "Benchmark":
        """A benchmark for learners, whose longest history is `config.learner_history`.

        Args:
            split: the log.
            config: settings of the learners.
            device: where they train.
            on_step: called every few steps of a learner; an exception ends the training.
            holdouts: the log's holdout sets; None: they are built here.
        """
        holdouts = holdouts or Holdouts(split, config.data)
        test = holdouts.test(config.learner_history)
        return cls(
            split=split,
            config=config,
            backbone=build_backbone(config.learner_backbone, config.data.max_history),
            holdouts=holdouts,
            validation=holdouts.validation(config.learner_history),
            test=test,
            protocols=available_protocols(test),
            device=device,
            on_step=on_step,
        )

    def notes(self) -> list[str]:
        """What figures there are not, and whom those on test leave out; for people."""
        notes = protocol_notes(self.test)
        cases, users = len(self.test.targets), len(self.split.evaluated)
        if cases < users:
            notes.append(f"test figures are of {cases:,} of {users:,} users")
        return notes

    def validate(self, model: TrainedModel) -> float:
        """Validation NDCG@10; calls `on_step`."""
        self.on_step()
        return validation_ndcg(model, self.validation)

    def measure(self, model: RankingModel) -> dict[Protocol, Metrics]:
        """Test metrics under every available protocol."""
        return evaluate_all(model, self.test, self.protocols)


def benchmark_for(
    bundle: Bundle,
    log: Interactions,
    device: torch.device,
    config: DistillConfig | None = None,
) -> Benchmark:
    """The benchmark for learners on this summary.

    Args:
        bundle: the summary.
        log: the log that it was made from.
        device: where learners train.
        config: settings of the learners; None: those of the summary.

    Raises:
        WrongLogError: after the filter the log's items are not those of the summary.
    """
    config = config or bundle.manifest.config
    split = split_log(log, config.data)
    if split.item_ids != bundle.item_ids:
        raise WrongLogError(
            f"the log has {split.n_items} items after the filter and the summary has "
            f"{len(bundle.item_ids)}, or their ids differ: this is not the log it was made from"
        )
    return Benchmark.prepare(split, config, device)

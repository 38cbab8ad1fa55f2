"""A split log, ready to ask questions of learners."""

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
from td3engine.ranking.metrics import Metrics, Protocol, RankingModel, available_protocols, evaluate
from td3engine.summary.bundle import Bundle


@dataclass(frozen=True)
class Benchmark:
    """A split log, ready to ask questions of learners."""

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
        """For learners, which read as many events as a summary's sequences train them to.

        Args:
            split: the log.
            config: of learners.
            device: where they train.
            on_step: called every few steps of a learner; may raise, to end the work early.
            holdouts: of the log, where they have been made.
        """
        holdouts = holdouts or Holdouts(split, config.data)
        test = holdouts.test(config.learner_history)
        return cls(
            split=split,
            config=config,
            backbone=build_backbone(config.backbone, config.data.max_history),
            holdouts=holdouts,
            validation=holdouts.validation(config.learner_history),
            test=test,
            protocols=available_protocols(test),
            device=device,
            on_step=on_step,
        )

    def validate(self, model: TrainedModel) -> float:
        """Validation NDCG@10 under `full`."""
        self.on_step()
        return evaluate(model, self.validation, "full")["ndcg@10"]

    def measure(self, model: RankingModel) -> dict[Protocol, Metrics]:
        """Test metrics under every available protocol."""
        return {protocol: evaluate(model, self.test, protocol) for protocol in self.protocols}


def benchmark_for(
    bundle: Bundle,
    log: Interactions,
    device: torch.device,
    config: DistillConfig | None = None,
) -> Benchmark:
    """The log as a benchmark for learners of this summary, by its own settings or by others.

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

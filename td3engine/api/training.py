"""Train a model on a summary, and evaluate a model on a log."""

import warnings
from collections.abc import Mapping
from typing import Any

from td3engine.config import MODES, BackboneConfig, BackboneName, DataConfig, Device, Mode
from td3engine.data.readers.tables import ArrowTable
from td3engine.data.reading import Files, read_log
from td3engine.data.split import split_log
from td3engine.data.types import Interactions
from td3engine.errors import UnusableError, WrongLogError
from td3engine.evaluation.benchmark import benchmark_for
from td3engine.inner_loop.learner import learn
from td3engine.models.registry import build_backbone, learner_of
from td3engine.models.trained_model import TrainedModel
from td3engine.ranking.holdout import Holdouts
from td3engine.ranking.metrics import Metrics, evaluate_all
from td3engine.ranking.protocols import Protocol, available_protocols
from td3engine.runtime.seeding import Purpose, generator
from td3engine.runtime.torch_setup import configure, pick_device
from td3engine.summary.bundle import Bundle

Source = Interactions | Files | ArrowTable
"""A log: the result of `read_log`, or what it reads: a file or several, a folder, or a table."""


def as_log(source: Source) -> Interactions:
    """The log; a file or a table is read."""
    return source if isinstance(source, Interactions) else read_log(source)


def train(
    summary: Bundle,
    backbone: BackboneName | None = None,
    mode: Mode = "shared-items",
    *,
    log: Source | None = None,
    other_log: bool = False,
    seed: int = 1,
    settings: Mapping[str, Any] | None = None,
    device: Device = "auto",
) -> TrainedModel:
    """Train a new model on a summary.

    Args:
        summary: from `distill` or `load_summary`.
        backbone: the name of a file in `td3engine/models/backbones`, e.g. `gru4rec`; None: the one
            that the summary was distilled with.
        mode: `shared-items` uses the summary's item table; `from-scratch` trains one.
        log: the log of the summary. With it the best state by validation is returned, without it
            the last one.
        other_log: whether `log` may be another one of the same items.
        seed: of the initial weights, dropout and augmentation.
        settings: `learner` settings that override the summary's, e.g. `{"steps": 600}`.
        device: where to train.

    Returns:
        The model, on the CPU, with its item ids and configuration.

    Raises:
        pydantic.ValidationError: an unknown backbone or setting, or a value outside its limits.
        UnusableError: an unknown mode.
        TypeError: `summary` is no summary, such as the path of one.
        WrongLogError: `log` is not the log that the summary was made from.
        DeviceError: the device does not exist on this machine.
        DivergedError: training produced numbers that are not finite.
    """
    if not hasattr(summary, "manifest"):
        kind = type(summary).__name__
        raise TypeError(f"train takes a Summary, not a {kind}; load_summary reads a folder")
    if mode not in MODES:
        raise UnusableError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if backbone is not None:
        BackboneConfig(name=backbone)  # refuses an unknown one
    config = learner_of(summary.manifest.config, backbone, dict(settings or {}))
    where = pick_device(device)
    configure(where)
    validate = None
    if log is not None:
        validate = benchmark_for(summary, as_log(log), where, config, other_log=other_log).validate
    learner = learn(
        summary.factors.to(where),
        build_backbone(config.learner_backbone, config.data.max_history),
        config.learner,
        mode,
        generator(seed, Purpose.LEARNER, device=where.type),
        validate,
    )
    model = learner.model.with_metadata(summary.item_ids, config.data, config.learner_history)
    return model.to(pick_device("cpu"))


class Figures(dict[Protocol, Metrics]):
    """Metrics by protocol. The old name `full` gives those of `unseen`, with a warning."""

    def __missing__(self, protocol: str) -> Metrics:
        if protocol == "full":
            warnings.warn(
                "protocol `full` is now `unseen`, which asks about new items only",
                DeprecationWarning,
                stacklevel=2,
            )
            return self["unseen"]
        raise KeyError(protocol)


def evaluate(model: TrainedModel, log: Source) -> Figures:
    """Metrics of a model on the test events of a log: each user's last event.

    Args:
        model: from `train` or `load_model`.
        log: the log that the model's summary was made from; the same filter is applied.

    Returns:
        By protocol, "hr@k", "ndcg@k" and "mrr@k" for k = 5, 10, 20, and "questions", the number of
        events that they are of. `all` ranks each event among all items. `unseen` asks about events
        whose item is new to the user, and ranks it among the items that the user has not met.
        `sampled-100` ranks it among 100 random items that the user never meets. A protocol without
        a question is absent.

    Raises:
        WrongLogError: after the filter the log's items are not those of the model.
        LogError: the log cannot be read or used.
    """
    data = model.data or DataConfig()
    split = split_log(as_log(log), data)
    if set(split.item_ids) != set(model.item_ids):
        raise WrongLogError(
            f"the log has {split.n_items} items after the filter and the model has "
            f"{model.n_items}, or their ids differ: this is not the log it was made from"
        )
    holdout = Holdouts(split.with_items(list(model.item_ids)), data).test(model.reads)
    return Figures(evaluate_all(model, holdout, available_protocols(holdout)))

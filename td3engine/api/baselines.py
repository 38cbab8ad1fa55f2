"""What a log gives without any summary: counting models, a network, and the teacher of both."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from td3engine.api.training import Source, as_log
from td3engine.config import Preset
from td3engine.config.presets import build_config
from td3engine.counting.fitting import fit_counting_models
from td3engine.data.split import split_log
from td3engine.evaluation.benchmark import Benchmark
from td3engine.evaluation.full_data import (
    counting_notes,
    counting_rows,
    full_data_rows,
    make_teacher,
    teacher_rows,
)
from td3engine.evaluation.table import Row
from td3engine.models.registry import build_backbone
from td3engine.pipeline.settings import log_notes, refuse_too_little_data, settled_for
from td3engine.ranking.holdout import Holdouts
from td3engine.runtime.torch_setup import configure, pick_device
from td3engine.teacher.network import network_training


def baselines(
    log: Source,
    *,
    preset: Preset = "balanced",
    config: Mapping[str, Any] | None = None,
    network: bool = True,
    on_epoch: Callable[[int, float], None] = lambda _epoch, _validation: None,
    on_note: Callable[[str], None] = lambda _note: None,
) -> list[Row]:
    """Test metrics of models that are made of the whole log.

    Args:
        log: the path of a file, a DataFrame or Arrow table, or the result of `read_log`.
        preset: whose settings the filter and the network have.
        config: settings that override the preset, nested.
        network: whether to train the network too, and mix the teacher; it takes minutes where the
            counting models take seconds.
        on_epoch: called after each epoch of the network with its number and the best validation
            NDCG@10 so far.
        on_note: called with each note on the log and its figures, such as rows that were dropped.

    Returns:
        A row for each model and protocol, as a job's result has them: `teacher` and `full data`
        (without `network` in their place `counting, mixed`), `popularity`, `repeat rule`, `Markov`,
        `windowed Markov`, `item-kNN`, and `EASE` where the log has at most `teacher.ease_items`
        items.

    Raises:
        LogError: the log cannot be read, or too little of it is left after the filter.
        pydantic.ValidationError: an unknown setting, or a value outside its limits.
        DeviceError: the device does not exist on this machine.
        DivergedError: training produced numbers that are not finite.
    """
    settings = build_config(preset, dict(config or {}))
    device = pick_device(settings.device)
    configure(device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    split = split_log(as_log(log), settings.data)
    refuse_too_little_data(split)
    backbone = build_backbone(settings.backbone, settings.data.max_history)
    for note in log_notes(split, settings):
        on_note(note)
    settings, _ = settled_for(settings, split, backbone, device)
    holdouts = Holdouts(split, settings.data)
    benchmark = Benchmark.prepare(split, settings, device, holdouts=holdouts)
    for note in benchmark.notes():
        on_note(note)
    history = settings.data.max_history
    validation = holdouts.validation(history)
    counting = fit_counting_models(split, validation, settings.teacher.ease_items)
    for note in counting_notes(counting, split.n_items):
        on_note(note)
    rows = counting_rows(benchmark, counting)
    if not network:
        teacher = make_teacher(None, counting, validation, split.repeat_share)
        return teacher_rows(benchmark, [teacher]) + rows
    training = network_training(split, settings, counting, validation, device)
    for best in training.epochs():
        on_epoch(training.epoch, best)
    trained = training.result()
    teacher = make_teacher(trained, counting, validation, split.repeat_share)
    return teacher_rows(benchmark, [teacher]) + full_data_rows(benchmark, [trained]) + rows

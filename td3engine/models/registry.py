"""Backbones by name: each is the module `td3engine.models.backbones.NAME` and its `BACKBONE`.

The module that a configuration names is imported, and no other.
"""

from importlib import import_module
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails

from td3engine.config import BackboneConfig, DistillConfig, LearnerConfig
from td3engine.config.presets import merge
from td3engine.models.backbone import Backbone, BackboneSpec


def backbone_spec(name: str) -> BackboneSpec:
    """What the file of this backbone declares.

    Raises:
        ModuleNotFoundError: there is no such file.
        TypeError: the file has no `BACKBONE`, or one that is not a `BackboneSpec`.
    """
    module = import_module(f"td3engine.models.backbones.{name}")
    spec = getattr(module, "BACKBONE", None)
    if not isinstance(spec, BackboneSpec):
        raise TypeError(f"{module.__file__} must set BACKBONE to a BackboneSpec")
    return spec


def build_backbone(config: BackboneConfig, history: int) -> Backbone:
    """The backbone that `config` names, reading at most `history` events.

    Raises:
        pydantic.ValidationError: an unknown option or a value that it may not have, with its path.
    """
    spec = backbone_spec(config.name)
    try:
        spec.options.model_validate(config.options)
    except ValidationError as error:
        raise _at_its_path(error, config.name) from error
    return spec.build(config, history)


def _at_its_path(error: ValidationError, name: str) -> ValidationError:
    """The same complaints, with paths that begin at the whole configuration."""
    lines = [
        InitErrorDetails(
            type=line["type"],
            loc=("backbone", "options", *line["loc"]),
            input=line["input"],
            ctx=line.get("ctx", {}),
        )
        for line in error.errors()
    ]
    return ValidationError.from_exception_data(f"options of {name}", lines)


def learner_of(
    config: DistillConfig, backbone: str | None, over: dict[str, Any] | None = None
) -> DistillConfig:
    """The settings of learners on a summary that was distilled by `config`.

    Args:
        config: of the summary.
        backbone: of the learners; None is that of the summary. Another one has its own steps and
            rate, and no options.
        over: `learner` settings laid over that.

    Raises:
        pydantic.ValidationError: an unknown setting, or a value outside its limits.
    """
    if backbone is None or backbone == config.backbone.name:
        own, model = {}, config.backbone
    else:
        own = dict(backbone_spec(backbone).learner)
        model = config.backbone.model_copy(update={"name": backbone, "options": {}})
    learner = merge(config.learner.model_dump(), merge(own, over or {}))
    parts = {"backbone": model, "learner": LearnerConfig.model_validate(learner)}
    return config.model_copy(update=parts)

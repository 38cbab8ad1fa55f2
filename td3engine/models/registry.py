"""Backbones: the recommenders that teach and learn. One file a model, one interface."""

from collections.abc import Callable

from td3engine.config import BackboneConfig, BackboneName
from td3engine.models.backbone import Backbone
from td3engine.models.backbones.bert4rec import BERT4Rec
from td3engine.models.backbones.gru4rec import GRU4Rec
from td3engine.models.backbones.narm import NARM
from td3engine.models.backbones.sasrec import SASRec

_MODELS: dict[BackboneName, Callable[[BackboneConfig, int], Backbone]] = {
    "sasrec": SASRec,
    "gru4rec": GRU4Rec,
    "narm": NARM,
    "bert4rec": BERT4Rec,
}


def build_backbone(config: BackboneConfig, history: int) -> Backbone:
    """The backbone that `config` names, reading at most `history` events."""
    return _MODELS[config.name](config, history)


__all__ = ["NARM", "BERT4Rec", "Backbone", "GRU4Rec", "SASRec", "build_backbone"]

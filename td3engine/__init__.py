"""td3engine distils an interaction log into a small summary that trains sequential recommenders.

    import td3engine as td3

    log = td3.read_log("ratings.csv")
    summary = td3.distill(log, preset="fast", progress=True)
    model = td3.train(summary, backbone="gru4rec")
    model.recommend([["i3", "i5"]], k=10)

Importing this package does not import torch: each name below is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from td3engine.api.baselines import baselines
    from td3engine.api.client import Client
    from td3engine.api.distillation import distill
    from td3engine.api.summary import Summary
    from td3engine.api.training import evaluate, train
    from td3engine.data.reading import read_log
    from td3engine.models.trained_model import TrainedModel

    load_summary = Summary.load
    load_model = TrainedModel.load

__version__ = "0.1.0"

__all__ = [
    "Client",
    "Summary",
    "TrainedModel",
    "baselines",
    "distill",
    "evaluate",
    "load_model",
    "load_summary",
    "read_log",
    "train",
]

_HOMES = {
    "Client": ("td3engine.api.client", "Client"),
    "Summary": ("td3engine.api.summary", "Summary"),
    "TrainedModel": ("td3engine.models.trained_model", "TrainedModel"),
    "baselines": ("td3engine.api.baselines", "baselines"),
    "distill": ("td3engine.api.distillation", "distill"),
    "evaluate": ("td3engine.api.training", "evaluate"),
    "load_model": ("td3engine.models.trained_model", "TrainedModel.load"),
    "load_summary": ("td3engine.api.summary", "Summary.load"),
    "read_log": ("td3engine.data.reading", "read_log"),
    "train": ("td3engine.api.training", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, path = _HOMES[name]
    value: Any = import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

"""Talk to a running service. Imports no torch."""

from td3engine.client.client import Client
from td3engine.client.wire import (
    Artifact,
    Dataset,
    DownloadError,
    Event,
    Job,
    MetricsPoint,
    Problem,
    ServiceError,
    UnexpectedAnswerError,
)

__all__ = [
    "Artifact",
    "Client",
    "Dataset",
    "DownloadError",
    "Event",
    "Job",
    "MetricsPoint",
    "Problem",
    "ServiceError",
    "UnexpectedAnswerError",
]

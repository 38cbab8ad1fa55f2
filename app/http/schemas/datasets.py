"""Models of datasets."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from td3engine.data.facts import LogFacts
from td3engine.data.filtering import FilterStatistics
from td3engine.data.types import LogStatistics, Reading


class DatasetStatistics(LogStatistics):
    """Statistics of the whole log, of what the filter leaves, and what is worth knowing of it.

    An older release that normalised the log said less.
    """

    filter: FilterStatistics | None = Field(
        default=None, description="Absent if an older release normalised the log."
    )
    facts: LogFacts | None = Field(
        default=None, description="What the log is like, where that changes what figures mean."
    )
    reading: Reading | None = Field(
        default=None,
        description="How the file was read: columns, delimiter, unit of times, first rows.",
    )
    notes: list[str] = Field(
        default=[], description="What is worth knowing before a job, as sentences."
    )


class DatasetPreview(BaseModel):
    """What a log would be as a dataset: the answer of a dry run."""

    source_bytes: int
    statistics: DatasetStatistics


class Dataset(BaseModel):
    """An interaction log that was uploaded, checked and normalised. It never changes."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(examples=["ds_01jd2v0z6w8k3m5n7p9q"])
    name: str
    created_at: datetime
    fingerprint: str = Field(
        description="sha256 of the normalised log, whatever the format of the uploaded file was."
    )
    source_sha256: str = Field(description="sha256 of the uploaded file.")
    source_bytes: int
    statistics: DatasetStatistics

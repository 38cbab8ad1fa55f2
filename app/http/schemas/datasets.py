"""Models of datasets."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from td3engine.interactions import FilterStatistics, LogStatistics


class DatasetStatistics(LogStatistics):
    """The whole log, and what the filter does to it."""

    filter: FilterStatistics | None = Field(
        default=None, description="Absent where an older release read the log."
    )


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

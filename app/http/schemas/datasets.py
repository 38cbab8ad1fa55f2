"""Models of datasets."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from td3engine.data.split import FilterStatistics
from td3engine.data.types import LogStatistics


class DatasetStatistics(LogStatistics):
    """Statistics of the whole log, and of what the filter leaves."""

    filter: FilterStatistics | None = Field(
        default=None, description="Absent if an older release normalised the log."
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

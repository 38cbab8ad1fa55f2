"""Models that several resources share."""

from datetime import datetime
from typing import Annotated, Generic, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
)

Item = TypeVar("Item")

# No control characters: they are mistakes, and PostgreSQL cannot store the null character.
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")
]


def _in_range(time: datetime) -> datetime:
    if not 1970 <= time.year < 9999:  # a margin for conversions between time zones and databases
        raise ValueError("It must be a time from 1970 to 9998")
    return time


Time = Annotated[AwareDatetime, AfterValidator(_in_range)]


class RequestModel(BaseModel):
    """Base of request bodies. Unknown fields are refused, so that typing errors are noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Page(BaseModel, Generic[Item]):
    """A part of a list. If `has_more`, repeat the call with `after` = the last item's id (for
    events: its sequence) to get the next part.
    """

    data: list[Item]
    has_more: bool = Field(description="Whether there is more after the last item.")

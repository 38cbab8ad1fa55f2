"""Pieces that several resources share."""

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

# No control characters: they are never meant, and PostgreSQL refuses the null character.
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")
]


def _in_our_era(time: datetime) -> datetime:
    if not 1970 <= time.year < 9999:  # so that no zone and no database takes it out of its range
        raise ValueError("It must be a time from 1970 to 9998")
    return time


Time = Annotated[AwareDatetime, AfterValidator(_in_our_era)]


class RequestModel(BaseModel):
    """What a client sends: unknown fields are refused, so a typing error is not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Page(BaseModel, Generic[Item]):
    """A part of a list. The next part: the same call with `after` = the last item's id (events: its
    sequence), as long as `has_more`.
    """

    data: list[Item]
    has_more: bool = Field(description="Whether there is more after the last item.")

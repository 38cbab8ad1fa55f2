"""Pieces that several resources share."""

from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Item = TypeVar("Item")

# No control characters: they are never meant, and PostgreSQL refuses the null character.
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")
]


class RequestModel(BaseModel):
    """What a client sends: unknown fields are refused, so a typing error is not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Page(BaseModel, Generic[Item]):
    """A part of a list. The next part: the same call with `after` = the last item's id (events: its
    sequence), as long as `has_more`.
    """

    data: list[Item]
    has_more: bool = Field(description="Whether there is more after the last item.")

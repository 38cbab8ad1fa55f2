"""Numbers that settings may have, and what all parts of a configuration are. No torch."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# The bound keeps a typing error from becoming an allocation. It is far above any useful value.
PositiveInt = Annotated[int, Field(gt=0, le=1_000_000)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class Part(BaseModel):
    """A part of a configuration: it has no other settings, and they do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

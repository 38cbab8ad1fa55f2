"""How hard generated tests try: a little in `make test`, for as long as asked in `make fuzz`."""

import os

from hypothesis import HealthCheck, settings

_FACTOR = int(os.environ.get("TD3_FUZZ", "1"))


def effort(examples: int) -> settings:
    """Settings for `examples` of them, the same ones each time; TD3_FUZZ=N asks for N times as
    many, and for new ones each time.
    """
    return settings(
        max_examples=examples * _FACTOR,
        derandomize=_FACTOR == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

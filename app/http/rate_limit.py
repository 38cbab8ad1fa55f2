"""Requests of a tenant in any minute, counted at the broker for all API processes together.

While the broker does not answer, each process counts for itself: a tenant may then send as many
requests to each of them. So a broker that is away neither stops the service nor opens it.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Sequence

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis.exceptions import RedisError

_ANSWER_SECONDS = 0.25  # a request must not wait longer for a broker that is frozen
_LEAVE_ALONE_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 60

logger = logging.getLogger(__name__)


class RateLimiter:
    """Counts requests. Safe to share between threads."""

    def __init__(self, broker_url: str) -> None:
        storage = RedisStorage(
            broker_url.replace("redis+socket://", "redis+unix://"),
            key_prefix="td3-rate",
            socket_timeout=_ANSWER_SECONDS,
            socket_connect_timeout=_ANSWER_SECONDS,
        )
        self._shared = SlidingWindowCounterRateLimiter(storage)
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._alone_until = -math.inf

    def wait_for(self, requests: Sequence[tuple[str, int]]) -> list[int]:
        """Count requests, given as (tenant, how many it may send a minute).

        Returns:
            For each of them 0, or after how many seconds it may be sent again.
        """
        room = {kind: self._count(*kind, asked) for kind, asked in Counter(requests).items()}
        waits = []
        for kind in requests:
            fits, seconds = room[kind]
            waits.append(0 if fits else seconds)
            room[kind] = (max(fits - 1, 0), seconds)
        return waits

    def _count(self, tenant_id: str, per_minute: int, requests: int) -> tuple[int, int]:
        """How many of them fit, and when there is room again for others."""
        limit = RateLimitItemPerMinute(per_minute)
        if time.monotonic() >= self._alone_until:
            try:
                return _hit(self._shared, limit, tenant_id, requests)
            except RedisError as error:
                logger.warning(
                    "the broker does not answer: requests are counted by this process alone: %s",
                    error,
                )
                self._alone_until = time.monotonic() + _LEAVE_ALONE_SECONDS
        return _hit(self._own, limit, tenant_id, requests)


def _hit(
    limiter: SlidingWindowCounterRateLimiter,
    limit: RateLimitItemPerMinute,
    tenant_id: str,
    requests: int,
) -> tuple[int, int]:
    if limiter.hit(limit, tenant_id, cost=requests):
        return requests, 0
    fits = 0
    while fits < requests and limiter.hit(limit, tenant_id):
        fits += 1
    seconds = limiter.get_window_stats(limit, tenant_id).reset_time - time.time()
    return fits, min(max(1, math.ceil(seconds)), _LONGEST_WAIT_SECONDS)

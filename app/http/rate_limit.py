"""Limits a tenant's requests per minute, counted at the broker for all API processes together.

While the broker does not answer, each process counts alone, and a tenant may send its limit to each
of them. So an outage of the broker neither stops the service nor removes the limit.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Sequence

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from app.addresses import parse_broker_url

_BROKER_TIMEOUT_SECONDS = 0.25  # a request must not wait longer for a broker that hangs
_BROKER_PAUSE_SECONDS = 5.0  # after a failure the broker is not tried for this long
_LONGEST_WAIT_SECONDS = 60

logger = logging.getLogger(__name__)


class RateLimiter:
    """Counts requests. Safe to share between threads."""

    def __init__(self, broker_url: str) -> None:
        client = Redis(
            **parse_broker_url(broker_url).redis_arguments(),
            socket_timeout=_BROKER_TIMEOUT_SECONDS,
            socket_connect_timeout=_BROKER_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),  # by default it tries for many seconds
        )
        # The pool has the address: the storage only checks the scheme of its URL.
        storage = RedisStorage(
            "redis://", connection_pool=client.connection_pool, key_prefix="td3-rate"
        )
        self._shared = SlidingWindowCounterRateLimiter(storage)
        self._local = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._local_until = -math.inf

    def wait_for(self, requests: Sequence[tuple[str, int]]) -> list[int]:
        """Count requests.

        Args:
            requests: each as (tenant, its limit per minute).

        Returns:
            For each request 0 if it is within the limit, else the seconds to wait before a retry.
        """
        remaining = {kind: self._count(*kind, count) for kind, count in Counter(requests).items()}
        waits = []
        for kind in requests:
            allowed, seconds = remaining[kind]
            waits.append(0 if allowed else seconds)
            remaining[kind] = (max(allowed - 1, 0), seconds)
        return waits

    def _count(self, tenant_id: str, per_minute: int, requests: int) -> tuple[int, int]:
        """How many of the requests are allowed, and the seconds until more are."""
        limit = RateLimitItemPerMinute(per_minute)
        if time.monotonic() >= self._local_until:
            try:
                return _hit(self._shared, limit, tenant_id, requests)
            except RedisError as error:
                logger.warning(
                    "the broker does not answer: requests are counted by this process alone: %s",
                    error,
                )
                self._local_until = time.monotonic() + _BROKER_PAUSE_SECONDS
        return _hit(self._local, limit, tenant_id, requests)


def _hit(
    limiter: SlidingWindowCounterRateLimiter,
    limit: RateLimitItemPerMinute,
    tenant_id: str,
    requests: int,
) -> tuple[int, int]:
    if limiter.hit(limit, tenant_id, cost=requests):
        return requests, 0
    allowed = 0
    while allowed < requests and limiter.hit(limit, tenant_id):
        allowed += 1
    seconds = limiter.get_window_stats(limit, tenant_id).reset_time - time.time()
    return allowed, min(max(1, math.ceil(seconds)), _LONGEST_WAIT_SECONDS)

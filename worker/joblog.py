"""Log lines that say which attempt at which job they are about."""

import logging
from collections.abc import MutableMapping
from typing import Any


class JobLog(logging.LoggerAdapter[logging.Logger]):
    """Puts the job's id and the attempt in front of every message."""

    def __init__(self, logger: logging.Logger, job_id: str, attempt: int) -> None:
        super().__init__(logger, {"job_id": job_id, "attempt": attempt})
        self._prefix = f"{job_id} attempt {attempt}: "

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        """The message with its prefix."""
        return f"{self._prefix}{msg}", kwargs

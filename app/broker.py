"""Sends job ids to workers through the broker. Which jobs are queued is decided by SQL."""

import logging
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from app.addresses import parse_broker_url
from app.deadlines import DeadlineThread
from app.store import jobs
from app.store.engine import STORE_ERRORS, Store, database_now

TASK = "td3.run_job"
QUEUE = "td3"
TIMEOUT_SECONDS = 5.0  # for publishers: a broker that takes longer counts as down

logger = logging.getLogger(__name__)


def celery_settings(broker_url: str) -> dict[str, Any]:
    """Celery's settings that publishers and consumers (worker/celery_app.py) share.

    Raises:
        ValueError: `broker_url` names no broker that is supported.
    """
    return {
        **parse_broker_url(broker_url).celery_settings(),
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": {"socket_timeout": 30, "socket_connect_timeout": 5},
        "task_default_queue": QUEUE,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_publish_retry_policy": {
            "max_retries": 2,
            "interval_start": 0.1,
            "interval_step": 0.2,
        },
        "enable_utc": True,
    }


class JobQueue:
    """Sends job ids to the broker. Safe to share between threads.

    Nobody waits longer than `TIMEOUT_SECONDS`: Celery, Kombu and redis-py each try again by
    themselves, and connecting takes several steps with a time-out each.
    """

    def __init__(self, broker_url: str) -> None:
        self._app = Celery("td3", set_as_current=False)
        settings = celery_settings(broker_url)
        # A consumer may wait long for work, but a request must not hang with the broker.
        settings["broker_transport_options"]["socket_timeout"] = TIMEOUT_SECONDS
        self._app.conf.update(settings)
        self._thread = DeadlineThread("broker")

    def publish(self, store: Store, job_id: str) -> bool:
        """Send the id of a queued job, after its row is committed.

        Returns:
            False, after a warning in the log, if the broker cannot be reached. That need not fail
            a request: the row is queued, and a janitor sends its id later.
        """
        try:
            self._thread.call(lambda: self._app.send_task(TASK, args=[job_id]), TIMEOUT_SECONDS)
        except (OperationalError, TimeoutError) as error:
            logger.warning("%s: not sent, the broker does not answer: %s", job_id, error)
            return False
        try:
            with store.write() as session:
                jobs.mark_published(session, job_id, database_now(session))
        except STORE_ERRORS as error:  # the id is on its way; at worst it is sent twice
            logger.warning("%s: sent, but could not be marked so: %s", job_id, error)
        return True

    def depth(self) -> int:
        """The number of ids that wait at the broker.

        Raises:
            kombu.exceptions.OperationalError: the broker does not answer.
        """
        try:
            return self._thread.call(self._depth, TIMEOUT_SECONDS)
        except TimeoutError as error:
            raise OperationalError(str(error)) from error

    def _depth(self) -> int:
        with self._app.connection_for_read() as connection:
            try:
                connection.ensure_connection(max_retries=1, timeout=TIMEOUT_SECONDS)
                channel = connection.channel()
                return int(channel.queue_declare(QUEUE, durable=True).message_count)
            except (*connection.connection_errors, *connection.channel_errors) as error:
                raise OperationalError(str(error)) from error

    def close(self) -> None:
        """Close the connections to the broker, and let their thread end."""
        self._app.close()
        self._thread.close()

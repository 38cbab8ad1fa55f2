"""The door bell: job ids on their way to the workers. SQL says what is queued, not the broker."""

import logging
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy.exc import SQLAlchemyError

from app.store import jobs
from app.store.engine import Store, database_now

TASK = "td3.run_job"
QUEUE = "td3"
_ANSWER_SECONDS = 5.0  # a broker that takes longer to answer a publisher counts as down

logger = logging.getLogger(__name__)


def celery_settings(broker_url: str) -> dict[str, Any]:
    """What publisher and consumer have to agree on. See worker/celery_app.py."""
    return {
        "broker_url": broker_url,
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
    """Sends job ids to the broker. Safe to share between threads."""

    def __init__(self, broker_url: str) -> None:
        self._app = Celery("td3", set_as_current=False)
        settings = celery_settings(broker_url)
        # A consumer may wait long for work; a request must not hang on a frozen broker.
        settings["broker_transport_options"]["socket_timeout"] = _ANSWER_SECONDS
        self._app.conf.update(settings)

    def publish(self, store: Store, job_id: str) -> bool:
        """Send the id of a queued job. False (and a warning) when the broker cannot be reached.

        That is no reason to fail a request: the row is queued, and a janitor sends it later.
        """
        try:
            self._app.send_task(TASK, args=[job_id])
        except OperationalError as error:
            logger.warning("%s: not sent, the broker does not answer: %s", job_id, error)
            return False
        try:
            with store.write() as session:
                jobs.mark_published(session, job_id, database_now(session))
        except SQLAlchemyError as error:  # the job is on its way: at worst it is sent twice
            logger.warning("%s: sent, but could not be marked so: %s", job_id, error)
        return True

    def depth(self) -> int:
        """How many ids wait at the broker.

        Raises:
            kombu.exceptions.OperationalError: the broker does not answer.
        """
        with self._app.connection_for_read() as connection:
            try:
                connection.ensure_connection(max_retries=1, timeout=_ANSWER_SECONDS)
                channel = connection.channel()
                return int(channel.queue_declare(QUEUE, durable=True).message_count)
            except (*connection.connection_errors, *connection.channel_errors) as error:
                raise OperationalError(str(error)) from error

    def close(self) -> None:
        """Close the connections to the broker."""
        self._app.close()

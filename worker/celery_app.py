"""The consumer of job ids: `celery -A worker.celery_app worker -P threads -c 1`, one per GPU.

The pool is `threads` because a job is a child process anyway: `solo` does not answer while a job
runs, and `prefork` may not have children. Ids are acknowledged on arrival, because an expired lease
reveals the job of a dead worker.
"""

import logging
import threading
from functools import cache
from typing import Any

from celery import Celery
from celery.signals import celeryd_init, setup_logging, worker_init, worker_shutting_down

from app.blobs.protocol import BlobStore
from app.blobs.registry import check_blobs_setting, open_blob_store
from app.broker import TASK, JobQueue, celery_settings
from app.logs import set_up_logging
from app.settings import Settings, SettingsError
from app.startup import refuse_settings, settings_or_exit, start
from app.store.engine import Store, open_store
from worker.attempt import run_job
from worker.janitor import Janitor
from worker.metrics import WorkerMetrics
from worker.start import wait_for_stores
from worker.webhook_sender import WebhookSender

logger = logging.getLogger(__name__)

_settings = settings_or_exit()
try:
    check_blobs_setting(_settings)
except SettingsError as error:
    refuse_settings(error)
celery_app = Celery("td3")
celery_app.conf.update(
    celery_settings(_settings.broker_url),
    # Reconnect for ever: neither the running job nor the janitor needs the broker.
    broker_connection_max_retries=None,
    task_acks_late=False,
    worker_pool="threads",
    worker_concurrency=1,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    worker_hijack_root_logger=False,
    worker_send_task_events=False,
)

_stopping = threading.Event()


@cache
def _store() -> Store:
    return open_store(_settings.database_url)


@cache
def _blobs() -> BlobStore:
    return open_blob_store(_settings, _store())


@cache
def _queue() -> JobQueue:
    return JobQueue(_settings.broker_url)


@cache
def _janitor() -> Janitor:
    return Janitor(_store(), _blobs(), _queue(), _settings)


@cache
def _metrics() -> WorkerMetrics:
    return WorkerMetrics()


@cache
def _webhooks() -> WebhookSender:
    return WebhookSender(_store(), _settings)


def _run_job(job_id: str) -> None:
    run_job(
        job_id,
        store=_store(),
        blobs=_blobs(),
        queue=_queue(),
        settings=_settings,
        stopping=_stopping,
        metrics=_metrics(),
    )


run_job_task = celery_app.task(_run_job, name=TASK)


def _omit_banner(instance: Any, **_: Any) -> None:
    instance.quiet = True  # the banner is no log record
    start()  # sets up logging: Celery's signal for it comes after its first warnings


def _set_up_logging(**_: Any) -> None:
    set_up_logging(_settings.log_format)


def _start(**_: Any) -> None:
    # Celery sends this signal before it connects to the broker.
    wait_for_stores(_store(), _blobs(), _settings.start_seconds)
    _janitor().start()
    _webhooks().start()
    _serve_metrics(_settings)


def _serve_metrics(settings: Settings) -> None:
    """Serve metrics if a port is set. A failure is only logged, because jobs need no metrics."""
    host, port = settings.worker_metrics_host, settings.worker_metrics_port
    if not port:
        return
    try:
        _metrics().serve(host, port)
    except OSError as error:
        logger.error(
            "no metrics of this worker: TD3_WORKER_METRICS_PORT, %s:%d, cannot be had: %s",
            host,
            port,
            error,
        )


def _stop(**_: Any) -> None:
    # This runs in a signal handler, so nothing here may wait.
    _stopping.set()
    _janitor().stop()
    _webhooks().stop()


celeryd_init.connect(_omit_banner)
setup_logging.connect(_set_up_logging)
worker_init.connect(_start)
worker_shutting_down.connect(_stop)

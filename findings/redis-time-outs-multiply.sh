#!/usr/bin/env bash
# The time-out that redis-py or Celery is given is not how long a call takes when the server says nothing.
#
# redis-py: `Redis(socket_timeout=0.25)` takes about 6 seconds. Unless `retry` is given, a client tries ten times
# more, with pauses, and a time-out counts as a failure to try again. `socket_timeout` is that of one try.
# Celery: with `task_publish_retry=False` and a `socket_timeout` of 1 second, `send_task` takes over 3 seconds and
# connects three times, the same as with it. The setting switches off the retries of the message; those of the
# connection stay, with pauses, and the transport option `max_retries` is not what they go by.
# Whom it hurts: everybody who bounds a web request by these settings. A broker that is frozen (and not gone:
# then both fail at once) holds requests many times as long as the time-out says.
# What helps: `retry=Retry(NoBackoff(), 0)` for redis-py; a deadline of one's own around Celery's call.
#
# Versions: redis 8.1.0, celery 5.7.0, kombu 5.7.0, Python 3.11. Seen: 5.9 s and 11 connections in place of 0.25 s;
# 3.5 s and 3 connections in place of 1 s, with and without publish retries.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check celery==5.7.0 kombu==5.7.0 redis==8.1.0 packaging==26.3
"$work/env/bin/python" - <<'PY'
import socket
import threading
import time

import redis
from celery import Celery
from kombu.exceptions import OperationalError
from redis.backoff import NoBackoff
from redis.retry import Retry

listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
connections = []


def accept():
    """Takes connections and says nothing."""
    while True:
        connections.append(listener.accept())


threading.Thread(target=accept, daemon=True).start()


def measure(name, call):
    connections.clear()
    begin = time.monotonic()
    try:
        call()
    except (redis.RedisError, OperationalError) as error:
        kind = type(error).__name__
    else:
        raise SystemExit("a server that says nothing was understood")
    seconds = time.monotonic() - begin
    print(f"{name}: {kind} after {seconds:.1f} s and {len(connections)} connections")
    return seconds, len(connections)


def send(retry):
    app = Celery("finding", broker=f"redis://127.0.0.1:{port}/0")
    app.conf.broker_transport_options = {"socket_timeout": 1, "socket_connect_timeout": 1}
    app.conf.task_publish_retry = retry
    app.conf.task_publish_retry_policy = {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.2}
    app.send_task("task")


print("redis", redis.__version__)
seconds, tries = measure(
    "redis-py, socket_timeout=0.25", lambda: redis.Redis(port=port, socket_timeout=0.25).get("x")
)
assert seconds > 2 and tries > 5, "redis-py's default changed"
seconds, tries = measure(
    "redis-py, no retries",
    lambda: redis.Redis(port=port, socket_timeout=0.25, retry=Retry(NoBackoff(), 0)).get("x"),
)
assert seconds < 1 and tries == 1, "redis-py tries again although it was told not to"
with_retry = measure("Celery, socket_timeout=1", lambda: send(True))
without = measure("Celery, socket_timeout=1, task_publish_retry=False", lambda: send(False))
assert with_retry[1] == without[1] == 3, "Celery's tries changed"
assert without[0] > 2, "Celery's time changed"
PY

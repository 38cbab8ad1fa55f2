"""Sends the messages in the outbox of webhooks. Concurrent senders do not disturb each other.

Clients choose the URLs, so the sender must not be led into this network. It resolves the host name
itself, checks each address, and connects to a checked address; the certificate must still be the
host's. It follows no redirects, ignores proxies of the environment, and reads only the status of an
answer.
"""

import asyncio
import ipaddress
import logging
import random
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpcore
import httpx

from app.settings import Settings
from app.store import webhooks
from app.store.engine import Store, database_now
from app.store.webhooks import Message, Outcome
from app.webhook_rules import IPNetwork, may_call, signed_headers

SEND_SECONDS = 15.0  # time-out of an attempt
# Pauses between attempts, more than a day in total. After the last one the message is given up.
PAUSES = tuple(
    timedelta(seconds=seconds) for seconds in (5, 60, 300, 1800, 7200, 21_600, 43_200, 43_200)
)
_JITTER = 0.1
# If the sender dies, a message is sent again this long after its claim: well after its time-out.
_HOLD = timedelta(seconds=4 * SEND_SECONDS)
_BATCH_SIZE = 16
_ERROR_CHARACTERS = 500
_GONE = 410  # the receiver wants no more messages

logger = logging.getLogger(__name__)


class DeliveryError(Exception):
    """A message could not be delivered; the text says why."""


class WebhookSender:
    """A thread that every `webhook_seconds` sends the messages that are due."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        """Start the thread, which begins with a round."""
        self._thread.start()

    def stop(self) -> None:
        """Make the current round the last one; does not wait for its end."""
        self._stop.set()

    def round(self) -> int:
        """Send a batch of due messages concurrently; returns how many were attempted."""
        with self._store.read() as session:
            due_ids = webhooks.due(session, database_now(session), limit=_BATCH_SIZE)
        messages = [message for due_id in due_ids if (message := self._claim(due_id))]
        if messages:
            asyncio.run(self._send_all(messages))
        return len(messages)

    def _claim(self, message_id: str) -> Message | None:
        with self._store.write() as session:
            now = database_now(session)
            return webhooks.claim(session, message_id, now, again_at=now + _HOLD)

    async def _send_all(self, messages: Sequence[Message]) -> None:
        # Threads resolve names and store outcomes. A name server that hangs occupies its thread
        # longer than SEND_SECONDS, so there are two threads per message: none waits for another.
        threads = ThreadPoolExecutor(2 * len(messages), thread_name_prefix="webhooks")
        asyncio.get_running_loop().set_default_executor(threads)
        sends = (self._send(message) for message in messages)
        for problem in await asyncio.gather(*sends, return_exceptions=True):
            if problem is not None:  # likely the database; the message will be sent again
                logger.error("webhooks: an outcome could not be stored", exc_info=problem)

    async def _send(self, message: Message) -> None:
        status: int | None = None
        try:
            async with asyncio.timeout(SEND_SECONDS):
                status = await post(message, self._settings.webhook_networks)
            error = None if 200 <= status < 300 else f"The receiver answered {status}."
        except TimeoutError:
            error = f"The receiver took longer than {SEND_SECONDS:g} seconds."
        except Exception as problem:  # noqa: BLE001 - any error ends this attempt only
            error = f"{type(problem).__name__}: {problem}"[:_ERROR_CHARACTERS]
        await asyncio.to_thread(self._store_outcome, message, status, error)

    def _store_outcome(self, message: Message, status: int | None, error: str | None) -> None:
        with self._store.write() as session:
            outcome = Outcome(database_now(session), status, error)
            if outcome.error is None:
                webhooks.delivered(session, message, outcome)
                logger.info("%s: delivered at attempt %d", message.id, message.attempt)
            elif message.attempt > len(PAUSES) or outcome.http_status == _GONE:
                webhooks.give_up(session, message, outcome)
                logger.warning("%s: given up: %s", message.id, outcome.error)
            else:
                pause = PAUSES[message.attempt - 1] * random.uniform(1, 1 + _JITTER)  # noqa: S311
                webhooks.put_off(session, message, outcome, outcome.at + pause)
                logger.info("%s: put off for %s: %s", message.id, pause, outcome.error)

    def _run(self) -> None:
        while True:
            try:
                while self.round() == _BATCH_SIZE and not self._stop.is_set():
                    pass  # more is due
            except Exception:
                logger.exception("webhooks: the round did not work, trying again later")
            if self._stop.wait(self._settings.webhook_seconds):
                return


async def post(message: Message, allowed: Sequence[IPNetwork]) -> int:
    """POST a signed message; returns the status of the answer.

    Args:
        message: to send.
        allowed: non-public networks that may be called.

    Raises:
        DeliveryError: the host has no address, or one that may not be called.
        Exception: any error of the connection.
    """
    url, body = httpx.URL(message.url), message.body.encode()
    signature = signed_headers(message.secret, message.id, int(time.time()), body)
    headers = [
        ("Content-Type", "application/json"),
        ("User-Agent", "td3-webhooks"),
        *signature.items(),
    ]
    target = httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )
    async with (
        httpcore.AsyncConnectionPool(network_backend=_CheckedAddresses(allowed)) as pool,
        pool.stream("POST", target, headers=headers, content=body) as answer,
    ):
        return answer.status


class _CheckedAddresses(httpcore.AsyncNetworkBackend):
    """Resolves a host, checks its addresses, and connects to a checked one."""

    def __init__(self, allowed: Sequence[IPNetwork]) -> None:
        self._allowed = allowed
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve, check, connect."""
        address = await self._resolve(host, port)
        return await self._backend.connect_tcp(
            address, port, timeout, local_address, socket_options
        )

    async def _resolve(self, host: str, port: int) -> str:
        try:
            entries = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )
        except (OSError, ValueError) as error:  # ValueError: not a valid name
            raise _no_address(host, f"not resolved: {error}") from error
        addresses = [str(entry[4][0]) for entry in entries]
        # One forbidden address refuses the host: such a name is likely an attack.
        for address in addresses:
            if not may_call(ipaddress.ip_address(address.partition("%")[0]), self._allowed):
                raise _no_address(host, f"leads to {address}, which may not be called")
        return addresses[0]


def _no_address(host: str, reason: str) -> DeliveryError:
    """The same error for every reason, so that clients cannot explore this network's names.

    The reason goes to the log.
    """
    logger.info("webhooks: %s: %s", host, reason)
    return DeliveryError(f"{host} has no address that may be called")

"""Sends what is in the outbox of webhooks; harmless in many workers at once.

The client chose the URL, so the connection goes where the check says and nowhere else: the name is
resolved here, each of its addresses is checked, and the checked address is what is connected to
(the certificate still has to be the name's). Redirects and proxies of the environment are not
followed, and of the answer nothing but its status is read.
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

SEND_SECONDS = 15.0  # a receiver has so long for all of it
# After the first attempt; more than a day in all. The last one that fails ends it.
PAUSES = tuple(
    timedelta(seconds=seconds) for seconds in (5, 60, 300, 1800, 7200, 21_600, 43_200, 43_200)
)
_JITTER = 0.1
# Begins anew if the sender dies: well after an attempt is over.
_HOLD = timedelta(seconds=4 * SEND_SECONDS)
_AT_ONCE = 16
_ERROR_CHARACTERS = 500
_GONE = 410  # the receiver wants no more

logger = logging.getLogger(__name__)


class DeliveryError(Exception):
    """A message could not be delivered; says why."""


class WebhookSender:
    """A thread that every `webhook_seconds` sends the messages that are due."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        """Begin, with a first round at once."""
        self._thread.start()

    def stop(self) -> None:
        """Let the round that is under way be the last one; does not wait for it."""
        self._over.set()

    def round(self) -> int:
        """Send what is due, side by side; returns how many messages were tried."""
        with self._store.read() as session:
            found = webhooks.due(session, database_now(session), limit=_AT_ONCE)
        claimed = [message for one in found if (message := self._claim(one))]
        if claimed:
            asyncio.run(self._send_all(claimed))
        return len(claimed)

    def _claim(self, message_id: str) -> Message | None:
        with self._store.write() as session:
            now = database_now(session)
            return webhooks.claim(session, message_id, now, again_at=now + _HOLD)

    async def _send_all(self, messages: Sequence[Message]) -> None:
        # Threads resolve names and keep outcomes. A name whose servers hang holds its thread beyond
        # the message's time, so there are two a message: nobody waits for somebody else's name.
        threads = ThreadPoolExecutor(2 * len(messages), thread_name_prefix="webhooks")
        asyncio.get_running_loop().set_default_executor(threads)
        sends = (self._send(message) for message in messages)
        for problem in await asyncio.gather(*sends, return_exceptions=True):
            if problem is not None:  # the database, most likely: it will be sent again
                logger.error("webhooks: an outcome could not be kept", exc_info=problem)

    async def _send(self, message: Message) -> None:
        status: int | None = None
        try:
            async with asyncio.timeout(SEND_SECONDS):
                status = await post(message, self._settings.webhook_networks)
            error = None if 200 <= status < 300 else f"The receiver answered {status}."
        except TimeoutError:
            error = f"The receiver took longer than {SEND_SECONDS:g} seconds."
        except Exception as problem:  # noqa: BLE001 - whatever it was, this attempt is over
            error = f"{type(problem).__name__}: {problem}"[:_ERROR_CHARACTERS]
        await asyncio.to_thread(self._settle, message, status, error)

    def _settle(self, message: Message, status: int | None, error: str | None) -> None:
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
                while self.round() == _AT_ONCE and not self._over.is_set():
                    pass  # more is due
            except Exception:
                logger.exception("webhooks: the round did not work, trying again later")
            if self._over.wait(self._settings.webhook_seconds):
                return


async def post(message: Message, allowed: Sequence[IPNetwork]) -> int:
    """POST a message, signed; returns the receiver's status.

    Raises:
        DeliveryError: its host has no address, or one that may not be called.
        Exception: whatever can go wrong with a connection.
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
    """Connects to a host only by an address that was checked, the very one."""

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
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
            raise _nowhere_to_call(host, f"not resolved: {error}") from error
        addresses = [str(entry[4][0]) for entry in found]
        # One that is refused refuses all: a name that leads inside as well is not a mistake.
        for address in addresses:
            if not may_call(ipaddress.ip_address(address.partition("%")[0]), self._allowed):
                raise _nowhere_to_call(host, f"leads to {address}, which may not be called")
        return addresses[0]


def _nowhere_to_call(host: str, why: str) -> DeliveryError:
    """The client is told the same in all cases: which names there are inside our network, and
    where they lead, is for the operator's log.
    """
    logger.info("webhooks: %s: %s", host, why)
    return DeliveryError(f"{host} has no address that may be called")

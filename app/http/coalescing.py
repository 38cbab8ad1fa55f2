"""Questions that many requests ask at the same time, answered in one go."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Generic, TypeVar

from sqlalchemy.exc import TimeoutError as NoAnswerError
from starlette.concurrency import run_in_threadpool

Question = TypeVar("Question")
Answer = TypeVar("Answer")

_MOST_AT_ONCE = 500
_ANSWER_SECONDS = 10.0


class Together(Generic[Question, Answer]):
    """Asks on behalf of the requests of one event loop.

    While one call answers, in a thread, the next questions gather; so a thread, a connection and a
    statement are paid for by all who wait, and never more than one thread is held. A question is
    answered by a call that began after it was asked: no answer is older than its request.

    Args:
        answer: gives as many answers as there are questions, in their order. Never called by two
            threads at once.
        seconds: longest time that who asks waits.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Question]], Sequence[Answer]],
        seconds: float = _ANSWER_SECONDS,
    ) -> None:
        self._answer = answer
        self._seconds = seconds
        self._waiting: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def ask(self, question: Question) -> Answer:
        """The answer; raises what the call raised.

        Raises:
            sqlalchemy.exc.TimeoutError: it takes too long, as with a database that is frozen.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((question, future))
        if self._asking is None:
            # In a context of its own: what the call logs is about no single request.
            self._asking = loop.create_task(self._ask_all(), context=Context())
        timer = loop.call_later(self._seconds, _give_up, future)
        try:
            return await future
        finally:
            timer.cancel()

    async def _ask_all(self) -> None:
        try:
            while self._waiting:
                asked, self._waiting = (
                    self._waiting[:_MOST_AT_ONCE],
                    self._waiting[_MOST_AT_ONCE:],
                )
                # Who has given up meanwhile is not asked for.
                asked = [(question, future) for question, future in asked if not future.done()]
                if asked:
                    await self._ask_for(asked)
        finally:
            self._asking = None

    async def _ask_for(self, asked: list[tuple[Question, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await run_in_threadpool(self._answer, [question for question, _ in asked])
        except Exception as error:  # noqa: BLE001 (each who asked shall have it)
            for _, future in asked:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(asked, answers, strict=True):
            if not future.done():
                future.set_result(answer)


def _give_up(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(NoAnswerError("no answer in time"))

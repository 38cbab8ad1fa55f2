"""Concurrent lookups share a call."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from app.http.coalescing import BatchedLookup, LookupTimeoutError


class Oracle:
    """Doubles numbers, once it is let; remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.may_answer = threading.Event()

    def __call__(self, asked: Sequence[int]) -> list[int]:
        self.calls.append(list(asked))
        assert self.may_answer.wait(60)
        if -1 in asked:
            raise ValueError("what a number")
        return [2 * number for number in asked]


async def settle() -> None:
    """Let every task go on until it waits for something."""
    for _ in range(10):
        await asyncio.sleep(0)


async def begin(lookup: BatchedLookup[int, int], number: int) -> asyncio.Task[int]:
    task = asyncio.create_task(lookup.get(number))
    await settle()
    return task


def test_what_is_asked_during_a_call_is_asked_in_the_next_one() -> None:
    oracle = Oracle()

    async def ask() -> list[int]:
        lookup = BatchedLookup(oracle)
        first = await begin(lookup, 1)
        others = [await begin(lookup, number) for number in (2, 3, 2)]
        oracle.may_answer.set()
        return [await task for task in (first, *others)]

    assert asyncio.run(ask()) == [2, 4, 6, 4]
    assert oracle.calls == [[1], [2, 3, 2]]


def test_an_error_is_for_those_who_asked() -> None:
    oracle = Oracle()

    async def ask() -> int:
        lookup = BatchedLookup(oracle)
        first = await begin(lookup, 1)
        bad = [await begin(lookup, number) for number in (-1, 2)]
        oracle.may_answer.set()
        for task in bad:
            with pytest.raises(ValueError, match="what a number"):
                await task
        assert await first == 2
        return await lookup.get(4)

    assert asyncio.run(ask()) == 8
    assert oracle.calls == [[1], [-1, 2], [4]]


def test_who_waits_in_vain_is_told_and_who_leaves_is_not_asked_for() -> None:
    oracle = Oracle()

    async def ask() -> int:
        lookup = BatchedLookup(oracle, seconds=0.01)
        with pytest.raises(LookupTimeoutError):
            await lookup.get(1)
        while not oracle.calls:  # on a busy machine its thread starts later than the time-out
            await asyncio.sleep(0.001)
        with pytest.raises(LookupTimeoutError):
            await lookup.get(2)
        patient = BatchedLookup(oracle)
        left, stays = await begin(patient, 3), await begin(patient, 4)
        gone = await begin(patient, 5)
        for task in (left, gone):
            task.cancel()
        await settle()
        oracle.may_answer.set()
        return await stays

    assert asyncio.run(ask()) == 8
    assert oracle.calls == [[1], [3], [4]]

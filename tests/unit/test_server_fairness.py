"""A greedy user waits in a queue of their own; others get in, in turn; who would wait too long is told to come back."""

from __future__ import annotations

import asyncio

import pytest

from stead.kube.errors import ApiError
from stead.server.fairness import OpenStreams, Places


async def hold(places: Places, user: str, done: asyncio.Event, log: list[str]) -> None:
    async with places.place(user):
        log.append(user)
        await done.wait()


async def test_one_user_never_takes_all_places() -> None:
    places, done, log = Places(4), asyncio.Event(), list[str]()
    greedy = [asyncio.create_task(hold(places, "greedy", done, log)) for _ in range(50)]
    await asyncio.sleep(0)
    other = asyncio.create_task(hold(places, "other", done, log))
    await asyncio.sleep(0)
    assert log == ["greedy", "greedy", "other"]
    done.set()
    await asyncio.gather(*greedy, other)
    assert (places.in_hand, places.waiting) == (0, 0)


async def test_queues_are_served_in_turn() -> None:
    places, log = Places(2), list[str]()
    gates = [asyncio.Event() for _ in range(2)]
    first = [asyncio.create_task(hold(places, f"u{n}", gate, [])) for n, gate in enumerate(gates)]
    await asyncio.sleep(0)
    done = asyncio.Event()
    done.set()
    waiting = [asyncio.create_task(hold(places, user, done, log)) for user in ("a", "a", "a", "b", "c")]
    await asyncio.sleep(0)
    gates[0].set()
    await asyncio.gather(*waiting)
    assert log[:3] == ["a", "b", "c"]
    gates[1].set()
    await asyncio.gather(*first)


async def test_a_full_queue_and_a_long_wait_are_429_with_retry_after() -> None:
    places, done = Places(2, queue_of_user=1, wait_seconds=0.05), asyncio.Event()
    held = asyncio.create_task(hold(places, "a", done, []))
    await asyncio.sleep(0)
    waits = asyncio.create_task(hold(places, "a", done, []))
    await asyncio.sleep(0)
    for refused in (hold(places, "a", done, []), waits):
        with pytest.raises(ApiError) as caught:
            await refused
        assert (caught.value.code, caught.value.details) == (429, {"retryAfterSeconds": 1})
    async with places.place("a", exempt=True):
        pass
    done.set()
    await held
    assert (places.in_hand, places.waiting) == (0, 0)


async def test_who_goes_away_while_waiting_leaves_nothing_behind() -> None:
    places, done = Places(2), asyncio.Event()
    held = asyncio.create_task(hold(places, "a", done, []))
    await asyncio.sleep(0)
    waits = asyncio.create_task(hold(places, "a", done, []))
    await asyncio.sleep(0)
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    done.set()
    await held
    assert (places.in_hand, places.waiting) == (0, 0)


def test_watches_are_counted_by_user() -> None:
    streams = OpenStreams(1)
    with streams.one("a"), streams.one("b"), streams.one("a", exempt=True):
        with pytest.raises(ApiError) as caught, streams.one("a"):
            pass
        assert caught.value.code == 429
    with streams.one("a"):
        pass

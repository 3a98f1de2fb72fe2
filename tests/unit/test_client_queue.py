"""The work queue: one look per key, never two workers on a key, back-off that grows and is forgotten."""

from __future__ import annotations

import asyncio

import pytest

from stead.client.queue import Backoff, NoHooks, QueueClosed, WorkQueue


async def test_a_key_stands_in_the_queue_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for key in ("a", "b", "a"):
        queue.add(key)
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert not len(queue)


async def test_a_key_in_work_comes_back_after_it_is_done() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    await queue.get()
    queue.add("a")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await queue.get()
    queue.done("a")
    assert await queue.get() == "a"


async def test_many_workers_never_share_a_key_and_lose_nothing() -> None:
    queue: WorkQueue[int] = WorkQueue()
    working: set[int] = set()
    looks = dict.fromkeys(range(20), 0)
    version = dict.fromkeys(range(20), 0)
    seen = dict.fromkeys(range(20), 0)

    async def worker() -> None:
        while True:
            key = await queue.get()
            assert key not in working
            working.add(key)
            seen[key] = version[key]
            await asyncio.sleep(0)
            looks[key] += 1
            working.discard(key)
            queue.done(key)

    workers = [asyncio.create_task(worker()) for _ in range(5)]
    for turn in range(200):
        version[turn % 20] += 1
        queue.add(turn % 20)
        if turn % 7 == 0:
            await asyncio.sleep(0)
    while not queue.idle:
        await asyncio.sleep(0)
    assert seen == version
    assert all(looks.values())
    for task in workers:
        assert not task.done()
        task.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


async def test_delayed_keys_come_in_order_and_the_earlier_appointment_stands() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("late", 0.05)
    queue.add_after("soon", 0.01)
    queue.add_after("late", 10)
    assert await queue.get() == "soon"
    async with asyncio.timeout(1):
        assert await queue.get() == "late"


async def test_back_off_grows_and_is_forgotten() -> None:
    queue: WorkQueue[str] = WorkQueue(backoff=Backoff(base=1, cap=5, jitter=0))
    assert [queue.add_rate_limited("a") for _ in range(4)] == [1, 2, 4, 5]
    assert queue.failures("a") == 4
    queue.forget("a")
    assert queue.add_rate_limited("a") == 1
    queue.close()


def test_jitter_stays_in_its_range() -> None:
    policy = Backoff(base=1, cap=60, jitter=0.2)
    assert policy.delay(1, lambda: 0.0) == pytest.approx(0.8)
    assert policy.delay(1, lambda: 0.999) < 1.2
    assert policy.delay(10_000, lambda: 0.5) == pytest.approx(60)


async def test_a_full_queue_refuses_and_counts() -> None:
    class Hooks(NoHooks):
        lost = 0

        def dropped(self) -> None:
            self.lost += 1

    hooks = Hooks()
    queue: WorkQueue[int] = WorkQueue(capacity=2, hooks=hooks)
    assert [queue.add(n) for n in (1, 2, 3, 1)] == [True, True, False, True]
    assert hooks.lost == 1


async def test_closing_ends_waiting_workers() -> None:
    queue: WorkQueue[str] = WorkQueue()
    waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.add_after("never", 0.01)
    queue.close()
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(result, QueueClosed)
    assert not queue.add("more")


async def test_a_cancelled_worker_does_not_swallow_a_wake_up() -> None:
    queue: WorkQueue[str] = WorkQueue()
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    first.cancel()
    async with asyncio.timeout(1):
        assert await second == "a"

"""The work queue between informers and a controller: which keys need a look, and when.

Called by `stead.controllers.runner` and the agent. Runs on one event loop, no locks. Level-triggered: a key stands in
the queue at most once, and never is worked on by two workers at a time; an add during the work puts it back afterwards.
Bounded by `capacity` distinct keys: when full, `add` answers False and counts it, and the owner's periodic resync
brings the key back. Semantics follow client-go's workqueue.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

import msgspec

K = TypeVar("K", bound=Hashable)


class QueueClosed(Exception):
    """The queue was closed and nothing is left to work on."""


class Backoff(msgspec.Struct, frozen=True):
    """Exponential delays in seconds: `base`·2ⁿ up to `cap`, times a random factor in [1-jitter, 1+jitter]."""

    base: float = 0.05
    cap: float = 60.0
    jitter: float = 0.2

    def delay(self, failures: int, roll: Callable[[], float] = random.random) -> float:
        """Delay before try number `failures`+1 (failures ≥ 1); `roll` gives a number in [0, 1)."""
        plain = min(self.cap, self.base * float(2 ** min(failures - 1, 30)))
        return plain * (1 - self.jitter + 2 * self.jitter * roll())


class QueueHooks(Protocol):
    """Where metrics come from. Times in seconds."""

    def depth(self, count: int) -> None: ...

    def started(self, waited: float) -> None: ...

    def finished(self, worked: float) -> None: ...

    def retried(self) -> None: ...

    def dropped(self) -> None: ...


class NoHooks:
    """Hooks that record nothing."""

    def depth(self, count: int) -> None:
        return None

    def started(self, waited: float) -> None:
        return None

    def finished(self, worked: float) -> None:
        return None

    def retried(self) -> None:
        return None

    def dropped(self) -> None:
        return None


class WorkQueue(Generic[K]):
    """See the module's prose. `get` → work → `done`, always in that order, from any number of worker tasks."""

    def __init__(
        self, *, backoff: Backoff | None = None, capacity: int = 200_000, hooks: QueueHooks | None = None
    ) -> None:
        self._backoff = backoff or Backoff()
        self._capacity = capacity
        self._hooks: QueueHooks = hooks or NoHooks()
        self._order: deque[K] = deque()
        self._dirty: dict[K, float] = {}  # key → loop time at which it was added
        self._working: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._wakers: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def __len__(self) -> int:
        return len(self._dirty)

    @property
    def idle(self) -> bool:
        """Nothing is queued or in work (delayed keys do not count)."""
        return not self._dirty and not self._working

    def add(self, key: K) -> bool:
        """Ask for a look at `key` as soon as a worker is free. False: the queue is full or closed."""
        if self._closed:
            return False
        if key in self._dirty:
            return True
        if len(self._dirty) >= self._capacity:
            self._hooks.dropped()
            return False
        self._dirty[key] = asyncio.get_running_loop().time()
        if key not in self._working:
            self._order.append(key)
            self._wake()
        self._hooks.depth(len(self._dirty))
        return True

    def add_after(self, key: K, delay: float) -> bool:
        """Ask for a look in `delay` seconds. An earlier appointment for the same key stands."""
        if delay <= 0:
            return self.add(key)
        if self._closed:
            return False
        if key not in self._due and len(self._due) >= self._capacity:
            self._hooks.dropped()
            return False
        when = asyncio.get_running_loop().time() + delay
        if self._due.get(key, when + 1) <= when:
            return True
        self._due[key] = when
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, key))
        self._arm()
        return True

    def add_rate_limited(self, key: K) -> float:
        """Count a failure of `key` and ask for a look after the back-off, which is returned in seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = self._backoff.delay(failures)
        self._hooks.retried()
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """The work on `key` went well: its back-off starts anew."""
        self._failures.pop(key, None)

    def failures(self, key: K) -> int:
        """How often in a row `key` was put back with `add_rate_limited`."""
        return self._failures.get(key, 0)

    async def get(self) -> K:
        """The next key; the caller owes a `done(key)`. Raises `QueueClosed`."""
        while not self._order:
            if self._closed:
                raise QueueClosed
            waker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._wakers.append(waker)
            try:
                await waker
            except asyncio.CancelledError:
                if waker.done() and not waker.cancelled():
                    self._wake()  # the wake-up that came with the cancellation belongs to another worker
                raise
        key = self._order.popleft()
        now = asyncio.get_running_loop().time()
        self._hooks.started(now - self._dirty.pop(key))
        self._working[key] = now
        return key

    def done(self, key: K) -> None:
        """The work on `key` ended, well or not. If it was added meanwhile, it is queued again."""
        started = self._working.pop(key, None)
        if started is not None:
            self._hooks.finished(asyncio.get_running_loop().time() - started)
        if key in self._dirty:
            self._order.append(key)
            self._wake()

    def close(self) -> None:
        """Refuse new keys, drop delayed ones, and let waiting workers end."""
        self._closed = True
        self._due.clear()
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
        while self._wakers:
            self._wake()

    def _wake(self) -> None:
        while self._wakers:
            waker = self._wakers.popleft()
            if not waker.done():
                waker.set_result(None)
                return

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._timer = asyncio.get_running_loop().call_at(self._heap[0][0], self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._heap and self._heap[0][0] <= now:
            when, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == when:
                del self._due[key]
                self.add(key)
        self._arm()

"""The watch cache: everything that is stored, in memory, with a ring of recent events and its subscribers.

One `Cache` stands before a store. The server reads and lists from it at a known revision and every watcher follows it,
so that a read or a watch never costs the store anything. Entries keep the stored bytes as they are. Keys are
`/registry/<group>/<plural>/…`; the first three segments are the *collection*, the unit in which subscribers are kept.

Concurrency: all on the event loop. One task applies the store's events in revision order and hands each to the
subscribers of its collection. A subscriber's queue is bounded: one that falls behind is closed with `Overrun` and has
to list again; it never slows the writer or other subscribers.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
import structlog

from stead.store.contract import Compacted, Entry, Event, Store, StoreFailure

log = structlog.get_logger(__name__)

#: Events kept for resuming watchers. etcd keeps five minutes; this is about that at 30 writes a second.
RING = 10_000
#: Bytes of values that the ring may hold before the oldest events go.
RING_BYTES = 16 * 1024 * 1024
#: Events that may wait for one subscriber before it is closed.
QUEUE = 4_096
#: Subscribers that are told before others get their turn on the loop.
_TOLD_AT_ONCE = 64
#: How long history is kept in the store before it is compacted, seconds (etcd's default in kube-apiserver).
HISTORY_SECONDS = 300.0


class Overrun(Exception):
    """The subscriber fell behind and was closed; list again and resume from there."""


def collection_of(key: str) -> str:
    """The collection part of a key: its first three segments with a closing slash."""
    parts = key.split("/", 4)
    return "/".join(parts[:4]) + "/"


class Subscription:
    """Events of one prefix after a revision, in order. Iterate it once; `close()` ends the iteration.

    The revision may be one that the cache has yet to reach: a client has seen it at another plane.
    """

    def __init__(self, prefix: str, backlog: list[Event], after: int) -> None:
        self.prefix = prefix
        self._after = after
        self._queue: deque[Event] = deque(backlog)
        self._wake = asyncio.Event()
        self._ended = False
        self._overrun = False
        #: called once for each batch of events, before a waiting task would be woken: True = the queue is dealt with
        self.listener: Callable[[], bool] | None = None

    def offer(self, event: Event) -> None:
        """Called by the cache: take the event, or mark the subscriber as overrun. `notify` follows."""
        if event.revision <= self._after:
            return
        if len(self._queue) >= QUEUE:
            self._overrun = True
            self._ended = True
            self._queue.clear()
        elif not self._ended:
            self._queue.append(event)

    def notify(self) -> None:
        """Called by the cache after a batch: tell whoever follows."""
        if self._ended or self.listener is None or not self.listener():
            self._wake.set()

    def close(self) -> None:
        """End the iteration after what is queued has been delivered."""
        self._ended = True
        self._wake.set()

    @property
    def ended(self) -> bool:
        return self._ended

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            while self._queue:
                yield self._queue.popleft()
            if self._overrun:
                raise Overrun(self.prefix)
            if self._ended:
                return
            self._wake.clear()
            if not self._queue and not self._ended:
                await self._wake.wait()

    async def wait(self) -> None:
        """Return once an event is queued or the subscription has ended."""
        if not self._queue and not self._ended:
            self._wake.clear()
            await self._wake.wait()

    def peek(self) -> list[Event]:
        """All queued events; they stay queued."""
        return list(self._queue)

    def take(self) -> list[Event]:
        """All queued events at once, without waiting."""
        batch = list(self._queue)
        self._queue.clear()
        return batch


class _Collection(msgspec.Struct):
    """Entries of one collection and their keys in order."""

    entries: dict[str, Entry]
    keys: list[str]
    subscriptions: list[Subscription]


class Cache:
    """See the module's prose. `start` before use, `close` at the end."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._collections: dict[str, _Collection] = {}
        self._ring: deque[Event] = deque()
        self._ring_bytes = 0
        self._revision = 0
        self._oldest = 0
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._compactor: asyncio.Task[None] | None = None
        self._failed: BaseException | None = None
        self._broken = asyncio.Event()

    async def start(self) -> None:
        """Load everything and follow the store from there."""
        snapshot = await self.store.range("")
        for entry in snapshot.entries:
            collection = self._collection(collection_of(entry.key))
            collection.entries[entry.key] = entry
            collection.keys.append(entry.key)
        self._revision = snapshot.revision
        await self._remember_history()
        self._task = asyncio.create_task(self._follow(snapshot.revision), name="watch-cache")
        self._compactor = asyncio.create_task(self._compact_forever(), name="store-compactor")

    async def _remember_history(self) -> None:
        """Fill the ring with what the store still knows, so that watches can be resumed across our restart."""
        self._oldest = position = max(0, self._revision - RING)
        while position < self._revision:
            try:
                events = await self.store.history(position)
            except Compacted as error:
                self._oldest = position = error.oldest
                continue
            if not events:
                return
            for event in events:
                position = event.revision
                if position <= self._revision:  # the rest comes by `_follow`
                    self._remember(event)

    async def close(self) -> None:
        """Stop following and end every subscription."""
        for task in (self._task, self._compactor):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        for collection in self._collections.values():
            for subscription in collection.subscriptions:
                subscription.close()

    @property
    def revision(self) -> int:
        """Revision up to which the cache is complete."""
        return self._revision

    @property
    def oldest(self) -> int:
        """A watch may resume from this revision or a later one."""
        return self._oldest

    @property
    def failure(self) -> BaseException | None:
        """Why the cache no longer follows the store, or None; readiness depends on it."""
        return self._failed

    def get(self, key: str) -> Entry | None:
        collection = self._collections.get(collection_of(key))
        return collection.entries.get(key) if collection else None

    def list(self, prefix: str) -> tuple[list[Entry], int]:
        """Entries below `prefix` (at or below one collection) in key order, and the revision they are true at."""
        collection = self._collections.get(collection_of(prefix))
        if collection is None:
            return [], self._revision
        keys = collection.keys
        if len(prefix) > len(collection_of(prefix)):
            start = bisect.bisect_left(keys, prefix)
            end = bisect.bisect_left(keys, prefix + "\U0010ffff")
            keys = keys[start:end]
        entries = collection.entries
        return [entries[key] for key in keys], self._revision

    def count(self, prefix: str) -> int:
        """How many entries a collection holds."""
        collection = self._collections.get(collection_of(prefix))
        return len(collection.keys) if collection else 0

    def collections(self) -> Sequence[str]:
        """Collections that hold at least one entry."""
        return [name for name, collection in self._collections.items() if collection.keys]

    def subscribe(self, prefix: str, after: int) -> Subscription:
        """Events below `prefix` with revision > `after`. Raises Compacted when those are no longer known."""
        if after < self._oldest:
            raise Compacted(self._oldest)
        start = bisect.bisect_right(self._ring, after, key=lambda event: event.revision)
        backlog = [self._ring[at] for at in range(start, len(self._ring)) if self._ring[at].key.startswith(prefix)]
        subscription = Subscription(prefix, backlog, after)
        self._collection(collection_of(prefix)).subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a subscriber that has gone."""
        subscription.close()
        collection = self._collections.get(collection_of(subscription.prefix))
        if collection is not None and subscription in collection.subscriptions:
            collection.subscriptions.remove(subscription)

    def end(self, prefix: str) -> None:
        """End every subscription below a prefix: what stands there has changed its meaning or is served no more."""
        collection = self._collections.get(collection_of(prefix))
        for subscription in list(collection.subscriptions) if collection else ():
            if subscription.prefix.startswith(prefix):
                self.unsubscribe(subscription)

    async def wait_for(self, revision: int, timeout: float = 10.0) -> None:
        """Return once the cache holds `revision`. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while self._revision < revision:
                await self._arrived.wait()

    def _collection(self, name: str) -> _Collection:
        collection = self._collections.get(name)
        if collection is None:
            collection = self._collections[name] = _Collection({}, [], [])
        return collection

    async def _follow(self, after: int) -> None:
        try:
            async for batch in self.store.watch(after):
                told: dict[Subscription, None] = {}
                for event in batch:
                    self._apply(event, told)
                # Who waits for the revision is answered first: what follows may be a thousand watchers.
                self._arrived.set()
                self._arrived = asyncio.Event()
                for at, subscription in enumerate(told, 1):
                    subscription.notify()
                    if at % _TOLD_AT_ONCE == 0:
                        await asyncio.sleep(0)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._failed = error
            self._broken.set()

    async def run_until_broken(self) -> None:
        """Return never, but raise why the cache no longer follows the store: only a fresh start can help."""
        await self._broken.wait()
        raise StoreFailure(f"the store can no longer be followed: {self._failed}") from self._failed

    def _apply(self, event: Event, told: dict[Subscription, None]) -> None:
        collection = self._collection(collection_of(event.key))
        known = collection.entries.get(event.key)
        if event.value is not None:
            if known is None:
                bisect.insort(collection.keys, event.key)
            created = known.create_revision if known else event.revision
            collection.entries[event.key] = Entry(event.key, event.value, created, event.revision)
        elif known is not None:
            del collection.entries[event.key]
            del collection.keys[bisect.bisect_left(collection.keys, event.key)]
        self._revision = event.revision
        self._remember(event)
        if collection.subscriptions:
            for subscription in collection.subscriptions:
                if event.key.startswith(subscription.prefix):
                    subscription.offer(event)
                    told[subscription] = None
            collection.subscriptions = [kept for kept in collection.subscriptions if not kept.ended]

    def _remember(self, event: Event) -> None:
        self._ring.append(event)
        self._ring_bytes += len(event.value or b"")
        while len(self._ring) > RING or (self._ring_bytes > RING_BYTES and len(self._ring) > 1):
            forgotten = self._ring.popleft()
            self._ring_bytes -= len(forgotten.value or b"")
            self._oldest = forgotten.revision

    async def _compact_forever(self) -> None:
        """Once a minute, compact the store to what was current `HISTORY_SECONDS` ago."""
        marks: deque[tuple[float, int]] = deque()
        while True:
            marks.append((time.monotonic(), self._revision))
            await asyncio.sleep(HISTORY_SECONDS / 5)
            while len(marks) > 1 and marks[1][0] <= time.monotonic() - HISTORY_SECONDS:
                marks.popleft()
            if marks[0][0] <= time.monotonic() - HISTORY_SECONDS:
                try:
                    await self.store.compact(marks[0][1])
                except StoreFailure as error:  # next time
                    log.warning("history could not be compacted", error=str(error))

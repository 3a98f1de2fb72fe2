"""The store of several planes: a real etcd cluster, through its JSON gateway.

Implements `store.contract.Store`; called as any store. Objects lie below `/NAME/`, whose keys are the contract's with
`/NAME` before them. Two keys lie beside: `NAME.meta` says format, offset and floor, and every commit requires that it
is as this plane read it, so that a restore, a copy or a newer release fences planes that know nothing of it.
`NAME.head` is written by every commit with it: its revision, read by quorum, is that of our last commit, whoever else
writes into this etcd. That is how a read learns what it must wait for: no progress notification is needed, which
Debian 12's etcd (3.4.23) does not give safely.

A revision is etcd's plus the stored offset. All writes of one commit share a revision and come in one batch of a watch.
A watch that falls silent while `head` moves on is opened anew on another member, from the last revision that was told.

Concurrency: on the event loop, any number of calls at once; concurrent `latest` calls share one question to etcd, which
is never one that was under way when they came.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import msgspec
import structlog

from stead.store.contract import (
    MAX_WRITES,
    Compacted,
    Conflict,
    Delete,
    Entry,
    Event,
    Put,
    Range,
    StoreFailure,
    TooLarge,
    Unavailable,
)
from stead.store.etcd_gateway import (
    Gateway,
    KeyValue,
    Outdated,
    RangeAnswer,
    TxnAnswer,
    WatchAnswer,
    WatchEvent,
    after_all,
    equals,
    look,
    packed,
    put,
)
from stead.store.migrations import TooNew

log = structlog.get_logger(__name__)

#: format that this release reads and writes in etcd
FORMAT = 1
#: how `Meta.filling` begins while a store is brought to a newer format
MIGRATION = "the migration"
#: entries of one page of a range
PAGE = 500
#: how long a watch may be silent before `head` is asked, and how long it may lag behind that, seconds
BEAT_SECONDS = 0.5
#: pause before a watch that broke is opened again, seconds
REOPEN_SECONDS = 0.05
#: how long `history` asks one member after another, and how long it waits for one of them, seconds
HISTORY_SECONDS, SILENCE_SECONDS = 15.0, 2.0

_RANGE, _TXN, _COMPACT = "/v3/kv/range", "/v3/kv/txn", "/v3/kv/compaction"


class Meta(msgspec.Struct, frozen=True):
    """What is kept about the store. `filling` says what is being put into it, while that lasts."""

    format: int = FORMAT
    offset: int = 0
    floor: int = 0
    filling: str = ""


class Superseded(StoreFailure):
    """The store was restored, copied into or migrated since this process opened it: it must start anew."""

    def __init__(self) -> None:
        super().__init__("the store was replaced or migrated by somebody else: this plane starts anew")


class EtcdStore:
    """See the module's prose. Create it with `await EtcdStore.open(members, name, tls)`."""

    def __init__(self, members: Sequence[str], name: str, tls: ssl.SSLContext) -> None:
        self.where = f"etcd://{','.join(members)}/{name}"
        self._members, self._tls = members, tls
        self.gateway = Gateway(members, tls)
        self.base = f"/{name}"
        self.head_key, self.meta_key = f"{self.base}.head", f"{self.base}.meta"
        self.meta = Meta()
        self.meta_revision = 0
        self._revision = 0
        self._trouble: str | None = None
        self._closed = asyncio.Event()
        self._running: asyncio.Task[int] | None = None
        self._queued: asyncio.Task[int] | None = None

    @classmethod
    async def open(cls, members: Sequence[str], name: str, tls: ssl.SSLContext, *, to_fill: bool = False) -> EtcdStore:
        """Reach the cluster and make the store where there is none. `to_fill`: one that was left half filled is fine.

        Raises StoreFailure, `migrations.TooNew`.
        """
        store = cls(members, name, tls)
        try:
            await store._begin(to_fill)
        except BaseException:
            await store.close()
            raise
        return store

    async def _begin(self, to_fill: bool) -> None:
        found = await self._raw(self.meta_key)
        if found is None:
            found = await self._make()
        if found is None:
            raise StoreFailure(f"{self.where}: what was written a moment ago is not there")
        self.meta = msgspec.json.decode(found.value, type=Meta)
        self.meta_revision = found.mod_revision
        if self.meta.format > FORMAT:
            raise TooNew(self.where, self.meta.format, FORMAT)
        resumes = self.meta.filling.startswith(MIGRATION) and self.meta.format < FORMAT
        if self.meta.filling and not to_fill and not resumes:
            raise StoreFailure(f"{self.where}: {self.meta.filling} was begun and not finished: do it again")
        self._revision = self.meta.floor
        await self.latest()

    async def _make(self) -> KeyValue | None:
        """A store where there is none, whoever else does so too. Its history begins with the revision of `head`."""
        first = {"compare": [equals(self.head_key, 0)], "success": [put(self.head_key, b"")]}
        await self.gateway.write(_TXN, first, TxnAnswer)
        head = await self._raw(self.head_key)
        meta = msgspec.json.encode(Meta(floor=head.mod_revision if head else 0))
        second = {"compare": [equals(self.meta_key, 0)], "success": [put(self.meta_key, meta)]}
        await self.gateway.write(_TXN, second, TxnAnswer)
        return await self._raw(self.meta_key)

    # --- reading ------------------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        return self._revision

    @property
    def is_shared(self) -> bool:
        return True

    @property
    def trouble(self) -> str | None:
        return self._trouble

    async def latest(self) -> int:
        if self._queued is None:
            self._queued = asyncio.create_task(self._ask(self._running), name="etcd-latest")
            self._queued.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._queued)

    async def _ask(self, running: asyncio.Task[int] | None) -> int:
        """The revision of `head`, asked after `running` has ended: who comes from now on needs another answer."""
        if running is not None:
            await asyncio.wait({running})
        self._running, self._queued = self._queued, None
        body = {"success": [look(self.head_key), look(self.meta_key)]}
        try:
            answer = await self.gateway.read(_TXN, body, TxnAnswer)
        except StoreFailure as error:
            self._trouble = str(error)
            raise
        self._trouble = None
        head, meta = (response.response_range.kvs for response in answer.responses)
        self._check_meta(meta)
        return self._note(head)

    def _check_meta(self, found: Sequence[KeyValue]) -> None:
        if not found or found[0].mod_revision != self.meta_revision:
            self._trouble = str(Superseded())
            raise Superseded

    def _note(self, head: Sequence[KeyValue]) -> int:
        """The revision of `head`, remembered as the newest known."""
        found = max(self.meta.floor, head[0].mod_revision + self.meta.offset) if head else self.meta.floor
        self._revision = max(self._revision, found)
        return found

    async def _raw(self, key: str) -> KeyValue | None:
        answer = await self.gateway.read(_RANGE, {"key": packed(key)}, RangeAnswer)
        return answer.kvs[0] if answer.kvs else None

    async def get(self, key: str) -> Entry | None:
        found = await self._raw(self.base + key)
        return self._entry(found) if found is not None else None

    def _entry(self, found: KeyValue) -> Entry:
        offset = self.meta.offset
        key = found.key.decode().removeprefix(self.base)
        return Entry(key, found.value, found.create_revision + offset, found.mod_revision + offset)

    async def range(self, prefix: str, *, limit: int = 0, start_after: str = "") -> Range:
        while True:
            try:
                return await self._range(prefix, limit, start_after)
            except Outdated:  # compacted while we read page after page
                continue

    async def _range(self, prefix: str, limit: int, start_after: str) -> Range:
        below = f"{self.base}{prefix or '/'}"
        start = f"{self.base}{start_after}\0" if start_after else below
        entries: list[Entry] = []
        revision = 0
        while True:
            wanted = min(PAGE, limit - len(entries)) if limit else PAGE
            body = {
                "key": packed(start),
                "range_end": after_all(below),
                "limit": str(wanted),
                "revision": str(revision),
            }
            page = await self.gateway.read(_RANGE, body, RangeAnswer)
            revision = revision or page.header.revision
            entries += [self._entry(found) for found in page.kvs]
            if not page.more or (limit and len(entries) >= limit):
                return Range(tuple(entries), revision + self.meta.offset, page.more)
            start = f"{self.base}{entries[-1].key}\0"

    # --- writing ------------------------------------------------------------------------------------------------

    async def commit(self, writes: Sequence[Put | Delete]) -> int:
        if len(writes) > MAX_WRITES:
            raise TooLarge(f"a commit of {len(writes)} writes; {MAX_WRITES} at most")
        while True:
            kept = [write for write in writes if not await self._is_idle(write)]
            if not kept:
                return await self.latest()
            revision = await self._commit(kept)
            if revision is not None:
                return revision

    async def _is_idle(self, write: Put | Delete) -> bool:
        """Whether it deletes what is absent already, of which a watch would hear nothing."""
        return isinstance(write, Delete) and write.expected is None and await self.get(write.key) is None

    async def _commit(self, writes: Sequence[Put | Delete]) -> int | None:
        """One transaction; None when a key that was to be deleted unconditionally has just gone: look again."""
        compares = [equals(self.meta_key, self.meta_revision)]
        for write in writes:
            if write.expected is not None:
                compares.append(equals(self.base + write.key, self._own(write.expected)))
            elif isinstance(write, Delete):
                compares.append({"key": packed(self.base + write.key), "target": "VERSION", "result": "GREATER"})
        done = [
            put(self.base + write.key, write.value)
            if isinstance(write, Put)
            else {"request_delete_range": {"key": packed(self.base + write.key)}}
            for write in writes
        ]
        looks = [look(self.meta_key), look(self.head_key), *(look(self.base + write.key, True) for write in writes)]
        body = {"compare": compares, "success": [*done, put(self.head_key, b"")], "failure": looks}
        answer = await self.gateway.write(_TXN, body, TxnAnswer)
        if answer.succeeded:
            revision = answer.header.revision + self.meta.offset
            self._revision = max(self._revision, revision)
            return revision
        self._refuse(writes, [response.response_range.kvs for response in answer.responses])
        return None

    def _own(self, revision: int) -> int:
        """A revision as etcd counts; one that no key of ours can have stays so."""
        return 0 if revision == 0 else revision - self.meta.offset if revision > self.meta.offset else -1

    def _refuse(self, writes: Sequence[Put | Delete], found: Sequence[Sequence[KeyValue]]) -> None:
        """Raise what a transaction that did not succeed means: Superseded, Conflict."""
        meta, head, *keys = found
        self._check_meta(meta)
        revision = self._note(head)
        for write, at in zip(writes, keys, strict=True):
            actual = at[0].mod_revision + self.meta.offset if at else 0
            if write.expected is not None and write.expected != actual:
                raise Conflict(write.key, actual, revision)

    async def compact(self, revision: int) -> None:
        target = min(revision, await self.latest()) - self.meta.offset
        if target > 0:
            with contextlib.suppress(Outdated):  # another plane has done it
                await self.gateway.write(_COMPACT, {"revision": str(target)}, RangeAnswer)

    # --- watching -----------------------------------------------------------------------------------------------

    async def watch(self, after: int) -> AsyncIterator[Sequence[Event]]:
        position = after
        while not self._closed.is_set():
            await self._check_known(position)
            try:
                async with contextlib.aclosing(self._follow(position)) as batches:
                    async for batch in batches:
                        position = batch[-1].revision
                        yield batch
            except Unavailable as error:
                if self._closed.is_set():
                    return
                log.info("a watch is opened anew", reason=str(error), after=position)
                await asyncio.sleep(REOPEN_SECONDS)

    async def _check_known(self, after: int) -> None:
        """Raise Compacted when not all events after this revision are known any more; wait while nobody answers."""
        if after < self.meta.floor:
            raise Compacted(self.meta.floor)
        while not self._closed.is_set():
            # Reading at a revision is refused one below the first that a watch may start after.
            body = {"key": packed(self.head_key), "revision": str(max(1, after - self.meta.offset))}
            try:
                await self.gateway.read(_RANGE, body, RangeAnswer)
                return
            except Unavailable:
                await asyncio.sleep(REOPEN_SECONDS)
            except Outdated:
                raise Compacted(await self._oldest()) from None

    async def _oldest(self) -> int:
        """The revision up to which etcd has forgotten its history."""
        async with self.gateway.watch({"key": packed(self.head_key), "start_revision": "1"}) as stream:
            while (answer := await stream.next(SILENCE_SECONDS)) is not None:
                if answer.compact_revision:
                    return int(answer.compact_revision) + self.meta.offset
        raise Unavailable("etcd does not say since when it remembers")

    async def _follow(self, after: int) -> AsyncGenerator[Sequence[Event]]:
        """Events from one member until that breaks (`Unavailable`) or its history ends (`Compacted`)."""
        async with self.gateway.watch(self._request(after)) as stream:
            batch: list[Event] = []
            position, behind = after, 0
            while not self._closed.is_set():
                answer: WatchAnswer | None = await stream.next(BEAT_SECONDS)
                if answer is None:
                    if behind > position:  # what `head` said a beat ago has not come
                        self.gateway.avoid(stream.url)
                        raise Unavailable(f"{stream.url} is at {position} and does not tell of {behind}")
                    with contextlib.suppress(Unavailable):  # nobody answers: nothing can have been committed
                        behind = await self.latest()
                    continue
                behind = 0
                batch += self._events(answer)
                if batch and not answer.fragment:
                    position = batch[-1].revision
                    yield batch
                    batch = []

    def _request(self, after: int) -> dict[str, Any]:
        start = max(1, after - self.meta.offset + 1)
        below = f"{self.base}/"
        return {"key": packed(below), "range_end": after_all(below), "start_revision": str(start), "prev_kv": True,
                "fragment": True}  # fmt: skip

    def _events(self, answer: WatchAnswer) -> list[Event]:
        if answer.compact_revision:
            raise Compacted(answer.compact_revision + self.meta.offset)
        if answer.canceled:
            raise Unavailable(f"the member ended the watch: {answer.cancel_reason}")
        return [self._event(event) for event in answer.events]

    def _event(self, event: WatchEvent) -> Event:
        value = None if event.type == "DELETE" else event.kv.value
        previous = event.prev_kv.value if event.prev_kv is not None else None
        key = event.kv.key.decode().removeprefix(self.base)
        return Event(event.kv.mod_revision + self.meta.offset, key, value, previous)

    async def history(self, after: int) -> Sequence[Event]:
        deadline = time.monotonic() + HISTORY_SECONDS
        while True:
            try:
                return await self._history(after)
            except Unavailable:  # a member ended meanwhile: another one knows the same
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(REOPEN_SECONDS)

    async def _history(self, after: int) -> Sequence[Event]:
        await self._check_known(after)
        events: list[Event] = []
        if await self.latest() <= after:
            return events
        async with self.gateway.watch(self._request(after)) as stream:
            while True:
                answer = await stream.next(SILENCE_SECONDS)
                if answer is None:
                    self.gateway.avoid(stream.url)
                    raise Unavailable(f"{stream.url} tells nothing of what came after {after}")
                events += self._events(answer)
                if events and not answer.fragment:
                    return events

    async def close(self) -> None:
        self._closed.set()
        await self.gateway.close()

"""The embedded store of rung 1: one SQLite file, one writer thread, group commit with full durability.

Owns the database file and nothing else; called through `store.contract.Store` only. Every write is one row appended to
`log`, whose primary key is the global revision; a row names the row that it replaces, so that no index has to be kept
on disk and compaction is a delete of replaced rows. The current revision of each key is kept in memory.

Concurrency: `commit` hands its writes to the single writer thread, which takes everything that waits into one
transaction (WAL, synchronous=FULL), then publishes the events and wakes the callers on the event loop, in that order.
An acknowledged write has therefore been fsynced. Reads use a second connection. A second process is refused by a lock.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import fcntl
import itertools
import os
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

from stead.store.contract import Compacted, Conflict, Delete, Entry, Event, Put, Range, StoreFailure
from stead.store.migrations import migrate

#: Commits that may wait for the writer; more are refused at once, so that a stuck disk cannot eat the memory.
MAX_WAITING = 10_000
#: Writes that one transaction takes together.
MAX_GROUP = 512
#: Events kept in memory for watchers that are a little behind; older ones are read from the file.
TAIL = 4096


class _Position(NamedTuple):
    """Where a key stands: revision of its last write and of its creation."""

    mod: int
    created: int


class _Pending(NamedTuple):
    writes: Sequence[Put | Delete]
    done: asyncio.Future[int]


def _newer(tail: deque[Event], position: int) -> list[Event]:
    """Events after `position`, found from the end: a watcher is seldom far behind."""
    count = 0
    for event in reversed(tail):
        if event.revision <= position:
            break
        count += 1
    return list(itertools.islice(tail, len(tail) - count, None))


#: revision, key, value (None = deleted), revision of its creation, revision that it replaces (0 = none)
_Row = tuple[int, str, bytes | None, int, int]
#: rows of one statement
_ROWS = 500


def _insert(connection: sqlite3.Connection, rows: list[_Row]) -> list[Event]:
    """Insert rows; the events they are.

    In few statements: Python gives up its lock for each, and gets it back late while the event loop is busy.
    """
    known = {revision: value for revision, _, value, _, _ in rows}
    before = [replaces for *_, replaces in rows if replaces and replaces not in known]
    for start in range(0, len(before), _ROWS):
        part = before[start : start + _ROWS]
        query = f"SELECT revision, value FROM log WHERE revision IN ({','.join('?' * len(part))})"  # noqa: S608 - marks
        known.update(connection.execute(query, part).fetchall())
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        marks = ",".join(["(?,?,?,?,?)"] * len(some))
        statement = f"INSERT INTO log (revision, key, value, created, replaces) VALUES {marks}"  # noqa: S608 - marks
        connection.execute(statement, [item for row in some for item in row])
    return [
        Event(revision, key, value, known[replaces] if replaces else None) for revision, key, value, _, replaces in rows
    ]


class SqliteStore:
    """`store.contract.Store` on a file. Create it with `await SqliteStore.open(path)`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._pending: queue.Queue[_Pending | None] = queue.Queue(MAX_WAITING)
        self._index: dict[str, _Position] = {}
        self._revision = 0
        self._compacted = 0
        self._known_from = 0
        self._tail: deque[Event] = deque(maxlen=TAIL)
        self._advanced = asyncio.Event()
        self._reading = threading.Lock()
        self._indexing = threading.Lock()
        self._closed = False
        self._writer: threading.Thread

    @classmethod
    async def open(cls, path: Path) -> SqliteStore:
        """Open or create the file (mode 0600), migrating it forward. Raises StoreFailure, `migrations.TooNew`."""
        store = cls(path)
        await asyncio.to_thread(store._open)
        store._writer = threading.Thread(target=store._write_forever, name="store-writer", daemon=True)
        store._writer.start()
        return store

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StoreFailure(f"store {self._path} is in use by another plane") from error
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        try:
            migrate(self._path)
            self._write_connection = self._connect()
            self._read_connection = self._connect()
            self._load()
        except sqlite3.Error as error:
            os.close(self._lock)
            raise StoreFailure(f"cannot open store {self._path}: {error}") from error
        except BaseException:
            os.close(self._lock)
            raise

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA cache_size=-4096")
        connection.execute("PRAGMA journal_size_limit=67108864")
        return connection

    def _load(self) -> None:
        index: dict[str, _Position] = {}
        for revision, key, present, created in self._read_connection.execute(
            "SELECT revision, key, value IS NOT NULL, created FROM log ORDER BY revision"
        ):
            self._revision = revision
            if present:
                index[key] = _Position(revision, created)
            else:
                index.pop(key, None)
        self._index = index
        meta = dict(self._read_connection.execute("SELECT name, number FROM meta"))
        self._compacted = meta.get("compacted", 0)
        # What was told between a copy and its restoration is in no history.
        self._known_from = max(self._compacted, meta.get("floor", 0))
        self._revision = max(self._revision, self._known_from)

    @property
    def revision(self) -> int:
        return self._revision

    @property
    def trouble(self) -> str | None:
        return None

    async def latest(self) -> int:
        return self._revision

    @property
    def is_shared(self) -> bool:
        return False

    async def get(self, key: str) -> Entry | None:
        position = self._index.get(key)
        if position is None:
            return None
        values = await asyncio.to_thread(self._values, [position.mod])
        value = values.get(position.mod)
        if value is None:  # replaced and compacted between the two reads: read it again
            return await self.get(key)
        return Entry(key, value, position.created, position.mod)

    async def range(self, prefix: str, *, limit: int = 0, start_after: str = "") -> Range:
        """See the contract; consistent because values are looked up by the revisions of one snapshot of the index."""
        while True:
            with self._indexing:
                revision = self._revision
                known = sorted((key, position) for key, position in self._index.items() if key.startswith(prefix))
            if start_after:
                known = known[bisect.bisect_right(known, start_after, key=lambda place: place[0]) :]
            more = bool(limit) and len(known) > limit
            places = known[:limit] if limit else known
            values = await asyncio.to_thread(self._values, [position.mod for _, position in places])
            if len(values) == len(places):
                entries = tuple(Entry(key, values[at.mod], at.created, at.mod) for key, at in places)
                return Range(entries, revision, more)

    def _values(self, revisions: list[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        with self._reading:
            try:
                for start in range(0, len(revisions), 500):
                    part = revisions[start : start + 500]
                    marks = ",".join("?" * len(part))
                    query = f"SELECT revision, value FROM log WHERE revision IN ({marks})"  # noqa: S608 - marks only
                    found.update(self._read_connection.execute(query, part))
            except sqlite3.Error as error:
                raise StoreFailure(f"cannot read store {self._path}: {error}") from error
        return found

    async def commit(self, writes: Sequence[Put | Delete]) -> int:
        if self._closed:
            raise StoreFailure("the store is closed")
        done: asyncio.Future[int] = self._loop.create_future()
        try:
            self._pending.put_nowait(_Pending(writes, done))
        except queue.Full as error:
            raise StoreFailure(f"{MAX_WAITING} writes wait already; the disk does not keep up") from error
        return await asyncio.shield(done)

    def _write_forever(self) -> None:
        while True:
            first = self._pending.get()
            if first is None:
                return
            group = [first]
            size = len(first.writes)
            stop = False
            while size < MAX_GROUP:
                try:
                    following = self._pending.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    stop = True
                    break
                group.append(following)
                size += len(following.writes)
            self._commit_group(group)
            if stop:
                return

    def _commit_group(self, group: list[_Pending]) -> None:
        """One transaction for all of `group`; a compare that fails refuses only its own commit."""
        changed: dict[str, _Position | None] = {}
        rows: list[_Row] = []
        answers: list[tuple[asyncio.Future[int], int | Exception]] = []
        revision = self._revision
        for pending in group:
            refused = self._refusal(pending.writes, changed, revision)
            if refused is not None:
                answers.append((pending.done, refused))
                continue
            for write in pending.writes:
                row = self._row(revision + 1, write, changed)
                if row is not None:
                    revision += 1
                    rows.append(row)
            answers.append((pending.done, revision))
        connection = self._write_connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            events = _insert(connection, rows)
            connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            failure = StoreFailure(f"cannot write store {self._path}: {error}")
            self._tell([], [(pending.done, failure) for pending in group])
            return
        with self._indexing:
            for key, position in changed.items():
                if position is None:
                    self._index.pop(key, None)
                else:
                    self._index[key] = position
            # The next group is numbered from here, whether or not the loop has run by then.
            self._revision = revision
        self._tell(events, answers)

    def _refusal(
        self, writes: Sequence[Put | Delete], changed: dict[str, _Position | None], revision: int
    ) -> Conflict | None:
        for write in writes:
            position = changed[write.key] if write.key in changed else self._index.get(write.key)
            actual = position.mod if position else 0
            if write.expected is not None and write.expected != actual:
                return Conflict(write.key, actual, revision)
        return None

    def _row(self, revision: int, write: Put | Delete, changed: dict[str, _Position | None]) -> _Row | None:
        """The row of one write; None when it deletes a key that is absent (nothing to record)."""
        position = changed[write.key] if write.key in changed else self._index.get(write.key)
        if position is None and isinstance(write, Delete):
            return None
        value = write.value if isinstance(write, Put) else None
        created = position.created if position else revision
        changed[write.key] = _Position(revision, created) if value is not None else None
        return revision, write.key, value, created, position.mod if position else 0

    def _tell(self, events: list[Event], answers: list[tuple[asyncio.Future[int], int | Exception]]) -> None:
        def on_loop() -> None:
            if events:
                self._tail.extend(events)
                self._advanced.set()
                self._advanced = asyncio.Event()
            for future, answer in answers:
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(on_loop)

    async def watch(self, after: int) -> AsyncIterator[Sequence[Event]]:
        position = after
        while not self._closed:
            if position < self._compacted:
                raise Compacted(self._compacted)
            advanced = self._advanced
            tail = self._tail
            if tail and tail[-1].revision > position:
                if tail[0].revision <= position + 1:
                    batch = _newer(tail, position)
                else:
                    batch = await asyncio.to_thread(self._history, position)
            elif self._revision > position and not tail:
                batch = await asyncio.to_thread(self._history, position)
            else:
                batch = []
            if batch:
                position = batch[-1].revision
                yield batch
                continue
            await advanced.wait()

    async def history(self, after: int) -> Sequence[Event]:
        oldest = max(self._compacted, self._known_from)
        if after < oldest:
            raise Compacted(oldest)
        return await asyncio.to_thread(self._history, after)

    def _history(self, after: int) -> list[Event]:
        """Up to 1,000 events after `after`, from the file."""
        query = (
            "SELECT l.revision, l.key, l.value, p.value FROM log l LEFT JOIN log p ON p.revision = l.replaces "
            "WHERE l.revision > ? ORDER BY l.revision LIMIT 1000"
        )
        with self._reading:
            try:
                rows = self._read_connection.execute(query, (after,)).fetchall()
            except sqlite3.Error as error:
                raise StoreFailure(f"cannot read store {self._path}: {error}") from error
        return [Event(revision, key, value, previous) for revision, key, value, previous in rows]

    async def compact(self, revision: int) -> None:
        target = min(revision, self._revision)
        if target > self._compacted:
            await asyncio.to_thread(self._compact, target)
            self._compacted = target

    def _compact(self, target: int) -> None:
        connection = self._connect()
        try:
            connection.execute("PRAGMA secure_delete=ON")  # what is forgotten may be a Secret of before it was sealed
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "DELETE FROM log WHERE revision IN (SELECT replaces FROM log WHERE revision <= ? AND replaces > 0)",
                (target,),
            )
            connection.execute("DELETE FROM log WHERE revision <= ? AND value IS NULL", (target,))
            connection.execute("UPDATE log SET replaces = 0 WHERE revision <= ?1 AND replaces > 0", (target,))
            connection.execute("INSERT OR REPLACE INTO meta (name, number) VALUES ('compacted', ?)", (target,))
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreFailure(f"cannot compact store {self._path}: {error}") from error
        finally:
            connection.close()

    async def scrub(self) -> None:
        """Forget all history and leave none of its bytes in the file or its write-ahead log. Before anybody watches."""
        await self.compact(self._revision)
        await asyncio.to_thread(self._vacuum)

    def _vacuum(self) -> None:
        connection = self._connect()
        try:
            with self._reading:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise StoreFailure(f"cannot clean store {self._path}: {error}") from error
        finally:
            connection.close()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._pending.put, None)
        await asyncio.to_thread(self._writer.join)
        self._advanced.set()
        self._write_connection.close()
        with self._reading:
            self._read_connection.close()
        os.close(self._lock)

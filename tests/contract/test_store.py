"""The contract of a store, run on every implementation, and its promise: kill -9 loses no acknowledged write."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from stead.store import migrations
from stead.store.contract import MAX_WRITES, Compacted, Conflict, Delete, Event, Put, Store, StoreFailure
from stead.store.etcd import EtcdStore
from stead.store.sqlite import SqliteStore
from stead.store.watch import QUEUE, Cache, Overrun

#: opens the store of this test, again and again
Opener = Callable[[], Awaitable[Store]]


@pytest.fixture(params=["sqlite", "etcd"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    if request.param == "sqlite":
        return lambda: SqliteStore.open(tmp_path / "store.db")
    cluster = request.getfixturevalue("etcd_cluster")
    name = f"t{uuid.uuid4().hex[:12]}"
    return lambda: EtcdStore.open(cluster.endpoints, name, cluster.context())


@pytest.fixture
async def store(opener: Opener) -> AsyncIterator[Store]:
    opened = await opener()
    yield opened
    await opened.close()


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "store.db")
    yield opened
    await opened.close()


async def commit_many(store: Store, writes: Sequence[Put]) -> None:
    for start in range(0, len(writes), MAX_WRITES):
        await store.commit(writes[start : start + MAX_WRITES])


async def take(store: Store, after: int, count: int) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(10):
        async for batch in store.watch(after):
            events.extend(batch)
            if len(events) >= count:
                return events
    return events


async def test_a_write_is_read_back_with_its_revisions(store: Store) -> None:
    first = await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    second = await store.commit([Put("/registry/g/p/ns/a", b"2", first)])
    entry = await store.get("/registry/g/p/ns/a")
    assert entry is not None
    assert (entry.value, entry.create_revision, entry.mod_revision) == (b"2", first, second)
    assert second > first
    assert store.revision == second


async def test_compare_and_swap_refuses_the_loser_and_changes_nothing(store: Store) -> None:
    revision = await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    with pytest.raises(Conflict) as refused:
        await store.commit([Put("/registry/g/p/ns/a", b"x", 0)])
    assert refused.value.actual == revision
    with pytest.raises(Conflict):
        await store.commit([Put("/registry/g/p/ns/new", b"y", 0), Delete("/registry/g/p/ns/a", 99)])
    assert await store.get("/registry/g/p/ns/new") is None
    assert store.revision == revision


async def test_what_is_absent_is_deleted_without_a_trace_and_what_is_there_once(store: Store) -> None:
    first = await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    assert await store.commit([Delete("/registry/g/p/ns/absent", None)]) == first
    gone = await store.commit([Delete("/registry/g/p/ns/a", None)])
    assert gone > first
    assert await store.commit([Delete("/registry/g/p/ns/a", None)]) == gone
    assert await store.latest() == gone
    assert [event.value for event in await store.history(first)] == [None]


async def test_history_ends_with_the_last_commit_and_includes_deletions(store: Store) -> None:
    first = await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    gone = await store.commit([Delete("/registry/g/p/ns/a", first)])
    assert await store.history(gone) == []
    events = await store.history(first)
    assert [(event.revision, event.value, event.previous) for event in events] == [(gone, None, b"1")]
    await store.compact(gone)
    assert await store.history(gone) == []
    with pytest.raises(Compacted) as forgotten:
        await store.history(gone - 1)
    assert forgotten.value.oldest == gone


async def test_large_values_and_odd_keys_come_back_whole(store: Store) -> None:
    value = bytes(range(256)) * 5000
    for name in ("ü", "a b", "z%2F", "~"):
        await store.commit([Put(f"/registry/g/p/ns/{name}", value, 0)])
    found = await store.range("/registry/g/p/ns/")
    assert [entry.key.rsplit("/", 1)[1] for entry in found.entries] == ["a b", "z%2F", "~", "ü"]
    assert {entry.value for entry in found.entries} == {value}
    assert [len(event.value or b"") for event in await take(store, found.entries[0].create_revision - 2, 4)] == [
        len(value)
    ] * 4


async def test_one_of_many_concurrent_creates_wins(store: Store) -> None:
    answers = await asyncio.gather(
        *(store.commit([Put("/registry/g/p/ns/a", str(n).encode(), 0)]) for n in range(50)), return_exceptions=True
    )
    assert sum(isinstance(answer, int) for answer in answers) == 1
    assert sum(isinstance(answer, Conflict) for answer in answers) == 49


async def test_ranges_are_ordered_limited_and_continue(store: Store) -> None:
    for name in ("c", "a", "b"):
        await store.commit([Put(f"/registry/g/p/ns/{name}", name.encode(), 0)])
    await store.commit([Put("/registry/g/q/ns/z", b"z", 0)])
    page = await store.range("/registry/g/p/", limit=2)
    assert [entry.value for entry in page.entries] == [b"a", b"b"]
    assert page.more
    rest = await store.range("/registry/g/p/", limit=2, start_after=page.entries[-1].key)
    assert [entry.value for entry in rest.entries] == [b"c"]
    assert not rest.more


async def test_watch_delivers_each_change_once_and_in_order(store: Store) -> None:
    before = store.revision
    await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    watching = asyncio.create_task(take(store, before, 3))
    await store.commit([Put("/registry/g/p/ns/a", b"2", None)])
    await store.commit([Delete("/registry/g/p/ns/a", None)])
    events = await watching
    assert [(event.value, event.previous) for event in events] == [(b"1", None), (b"2", b"1"), (None, b"2")]
    assert [event.revision for event in events] == sorted({event.revision for event in events})


async def test_history_outlives_a_restart_and_compaction_ends_it(opener: Opener) -> None:
    store = await opener()
    first = await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    await store.commit([Put("/registry/g/p/ns/a", b"2", None)])
    last = await store.commit([Put("/registry/g/p/ns/b", b"3", None)])
    await store.close()
    store = await opener()
    assert store.revision == last
    assert [event.previous for event in await take(store, first, 2)] == [b"1", None]
    await store.compact(last)
    with pytest.raises(Compacted):
        await take(store, first, 1)
    assert {entry.value for entry in (await store.range("")).entries} == {b"2", b"3"}
    await store.close()
    store = await opener()
    assert {entry.value for entry in (await store.range("")).entries} == {b"2", b"3"}
    assert await store.commit([Put("/registry/g/p/ns/c", b"4", 0)]) > last
    await store.close()


async def test_revisions_never_run_backwards_after_everything_was_deleted_and_compacted(opener: Opener) -> None:
    store = await opener()
    await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    last = await store.commit([Delete("/registry/g/p/ns/a", None)])
    await store.compact(last)
    await store.close()
    store = await opener()
    assert store.revision == last
    await store.close()


async def test_a_second_plane_on_the_same_file_is_refused(file: SqliteStore, tmp_path: Path) -> None:
    with pytest.raises(StoreFailure, match="in use"):
        await SqliteStore.open(tmp_path / "store.db")


async def test_a_newer_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await (await SqliteStore.open(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {migrations.FORMAT + 1}")
    before = path.read_bytes()
    with pytest.raises(migrations.TooNew, match="knows formats"):
        await SqliteStore.open(path)
    assert path.read_bytes() == before


async def test_migration_keeps_a_copy_and_rolls_back_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = await SqliteStore.open(path)
    await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    await store.close()

    def breaks(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM log")
        raise sqlite3.OperationalError("no")

    with pytest.raises(sqlite3.OperationalError):
        migrations.migrate(path, (*migrations.STEPS, breaks))
    store = await SqliteStore.open(path)
    assert (await store.get("/registry/g/p/ns/a")) is not None
    await store.close()
    migrations.migrate(path, (*migrations.STEPS, lambda connection: None))
    assert path.with_name(f"store.db.format-{migrations.FORMAT}").exists()


WRITER = """
import asyncio, sys
from pathlib import Path
from stead.store.contract import Put
from stead.store.sqlite import SqliteStore

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    async def write(lane):
        for n in range(100000):
            revision = await store.commit([Put(f"/registry/g/p/ns/{lane}-{n}", b"x" * 500, 0)])
            print(f"{lane}-{n}", flush=True)
    await asyncio.gather(*(write(lane) for lane in range(8)))
asyncio.run(main())
"""


async def test_kill_9_loses_no_acknowledged_write(tmp_path: Path) -> None:
    for round_ in range(3):
        path = tmp_path / f"store-{round_}.db"
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        acknowledged = [process.stdout.readline().strip() for _ in range(200 + 77 * round_)]
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += [line.strip() for line in process.stdout.readlines() if line.endswith("\n")]
        process.wait()
        store = await SqliteStore.open(path)
        kept = {entry.key.rsplit("/", 1)[1] for entry in (await store.range("")).entries}
        await store.close()
        assert set(acknowledged) <= kept


async def test_a_full_disk_fails_the_write_clearly_and_the_store_goes_on(file: SqliteStore) -> None:
    await file.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    page_count = file._write_connection.execute("PRAGMA page_count").fetchone()[0]
    file._write_connection.execute(f"PRAGMA max_page_count = {page_count + 1}")
    with pytest.raises(StoreFailure, match="full"):
        await file.commit([Put("/registry/g/p/ns/big", b"x" * 200_000, 0)])
    file._write_connection.execute("PRAGMA max_page_count = 1073741823")
    await file.commit([Put("/registry/g/p/ns/big", b"x" * 200_000, 0)])
    assert {entry.key for entry in (await file.range("")).entries} == {"/registry/g/p/ns/a", "/registry/g/p/ns/big"}


async def test_the_cache_lists_follows_and_resumes(store: Store) -> None:
    start = await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    cache = Cache(store)
    await cache.start()
    subscription = cache.subscribe("/registry/g/p/", start)
    revision = await store.commit([Put("/registry/g/p/other/b", b"2", 0), Put("/registry/g/q/ns/c", b"3", 0)])
    await cache.wait_for(revision)
    entries, at = cache.list("/registry/g/p/")
    assert [entry.value for entry in entries] == [b"1", b"2"]
    assert at == revision
    assert [entry.value for entry in cache.list("/registry/g/p/other/")[0]] == [b"2"]
    assert [event.value for event in subscription.take()] == [b"2"]
    resumed = cache.subscribe("/registry/g/p/other/", start)
    assert [event.value for event in resumed.take()] == [b"2"]
    await cache.close()


async def test_a_watch_goes_on_across_a_restart_as_far_as_the_store_remembers(store: Store) -> None:
    first, second, _ = [await store.commit([Put("/registry/g/p/ns/a", value, None)]) for value in (b"1", b"2", b"3")]
    cache = Cache(store)
    await cache.start()
    again = cache.subscribe("/registry/g/p/", first)
    assert [event.value for event in again.take()] == [b"2", b"3"]
    await cache.close()
    await store.compact(second)
    cache = Cache(store)
    await cache.start()
    assert [event.value for event in cache.subscribe("/registry/g/p/", second).take()] == [b"3"]
    with pytest.raises(Compacted):
        cache.subscribe("/registry/g/p/", first)
    await cache.close()


async def test_who_has_seen_more_elsewhere_is_told_nothing_twice(store: Store) -> None:
    cache = Cache(store)
    await cache.start()
    after = await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])  # not in this cache yet
    subscription = cache.subscribe("/registry/g/p/", after)
    await cache.wait_for(await store.commit([Put("/registry/g/p/ns/a", b"2", after)]))
    assert [event.value for event in subscription.take()] == [b"2"]
    await cache.close()


async def test_what_was_told_after_a_copy_that_is_restored_is_in_no_history(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "store.db")
    await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    await store.close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("INSERT OR REPLACE INTO meta (name, number) VALUES ('floor', 50)")
    store = await SqliteStore.open(tmp_path / "store.db")
    cache = Cache(store)
    await cache.start()
    with pytest.raises(Compacted):
        cache.subscribe("/registry/g/p/", 20)
    assert await store.commit([Put("/registry/g/p/ns/a", b"2", None)]) == 51
    await cache.close()
    await store.close()


async def test_a_lost_race_says_up_to_where_to_read(store: Store) -> None:
    """The one who lost to a delete must see that the key is gone, which its own revision (none) cannot tell."""
    start = await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    gone = await store.commit([Delete("/registry/g/p/ns/a", start)])
    with pytest.raises(Conflict) as lost:
        await store.commit([Put("/registry/g/p/ns/a", b"2", start)])
    assert (lost.value.actual, lost.value.revision) == (0, gone)


async def test_a_slow_subscriber_is_closed_and_others_go_on(store: Store) -> None:
    cache = Cache(store)
    await cache.start()
    slow = cache.subscribe("/registry/g/p/", cache.revision)
    other = cache.subscribe("/registry/g/p/ns/last", cache.revision)
    writes = [Put(f"/registry/g/p/ns/{n}", b"x", 0) for n in range(QUEUE + 10)]
    await commit_many(store, writes)
    await cache.wait_for(await store.commit([Put("/registry/g/p/ns/last", b"x", 0)]))
    with pytest.raises(Overrun):
        async for _ in slow:
            pass
    assert len(other.take()) == 1
    await cache.close()

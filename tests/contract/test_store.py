"""The contract of a store, run on every implementation, and its promise: kill -9 loses no acknowledged write."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stead.store import migrations
from stead.store.contract import Compacted, Conflict, Delete, Event, Put, StoreFailure
from stead.store.sqlite import SqliteStore
from stead.store.watch import QUEUE, Cache, Overrun


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "store.db")
    yield opened
    await opened.close()


async def take(store: SqliteStore, after: int, count: int) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(10):
        async for batch in store.watch(after):
            events.extend(batch)
            if len(events) >= count:
                return events
    return events


async def test_a_write_is_read_back_with_its_revisions(store: SqliteStore) -> None:
    first = await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    second = await store.commit([Put("/registry/g/p/ns/a", b"2", first)])
    entry = await store.get("/registry/g/p/ns/a")
    assert entry is not None
    assert (entry.value, entry.create_revision, entry.mod_revision) == (b"2", first, second)
    assert second > first
    assert store.revision == second


async def test_compare_and_swap_refuses_the_loser_and_changes_nothing(store: SqliteStore) -> None:
    revision = await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    with pytest.raises(Conflict) as refused:
        await store.commit([Put("/registry/g/p/ns/a", b"x", 0)])
    assert refused.value.actual == revision
    with pytest.raises(Conflict):
        await store.commit([Put("/registry/g/p/ns/new", b"y", 0), Delete("/registry/g/p/ns/a", 99)])
    assert await store.get("/registry/g/p/ns/new") is None
    assert store.revision == revision


async def test_one_of_many_concurrent_creates_wins(store: SqliteStore) -> None:
    answers = await asyncio.gather(
        *(store.commit([Put("/registry/g/p/ns/a", str(n).encode(), 0)]) for n in range(50)), return_exceptions=True
    )
    assert sum(isinstance(answer, int) for answer in answers) == 1
    assert sum(isinstance(answer, Conflict) for answer in answers) == 49


async def test_ranges_are_ordered_limited_and_continue(store: SqliteStore) -> None:
    for name in ("c", "a", "b"):
        await store.commit([Put(f"/registry/g/p/ns/{name}", name.encode(), 0)])
    await store.commit([Put("/registry/g/q/ns/z", b"z", 0)])
    page = await store.range("/registry/g/p/", limit=2)
    assert [entry.value for entry in page.entries] == [b"a", b"b"]
    assert page.more
    rest = await store.range("/registry/g/p/", limit=2, start_after=page.entries[-1].key)
    assert [entry.value for entry in rest.entries] == [b"c"]
    assert not rest.more


async def test_watch_delivers_each_change_once_and_in_order(store: SqliteStore) -> None:
    before = store.revision
    await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    watching = asyncio.create_task(take(store, before, 3))
    await store.commit([Put("/registry/g/p/ns/a", b"2", None)])
    await store.commit([Delete("/registry/g/p/ns/a", None)])
    events = await watching
    assert [(event.value, event.previous) for event in events] == [(b"1", None), (b"2", b"1"), (None, b"2")]
    assert [event.revision for event in events] == sorted({event.revision for event in events})


async def test_history_outlives_a_restart_and_compaction_ends_it(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "store.db")
    first = await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    await store.commit([Put("/registry/g/p/ns/a", b"2", None)])
    last = await store.commit([Put("/registry/g/p/ns/b", b"3", None)])
    await store.close()
    store = await SqliteStore.open(tmp_path / "store.db")
    assert store.revision == last
    assert [event.previous for event in await take(store, first, 2)] == [b"1", None]
    await store.compact(last)
    with pytest.raises(Compacted):
        await take(store, first, 1)
    assert {entry.value for entry in (await store.range("")).entries} == {b"2", b"3"}
    await store.close()
    store = await SqliteStore.open(tmp_path / "store.db")
    assert {entry.value for entry in (await store.range("")).entries} == {b"2", b"3"}
    assert await store.commit([Put("/registry/g/p/ns/c", b"4", 0)]) > last
    await store.close()


async def test_revisions_never_run_backwards_after_everything_was_deleted_and_compacted(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "store.db")
    await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    last = await store.commit([Delete("/registry/g/p/ns/a", None)])
    await store.compact(last)
    await store.close()
    store = await SqliteStore.open(tmp_path / "store.db")
    assert store.revision == last
    await store.close()


async def test_a_second_plane_on_the_same_file_is_refused(store: SqliteStore, tmp_path: Path) -> None:
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


async def test_a_full_disk_fails_the_write_clearly_and_the_store_goes_on(store: SqliteStore) -> None:
    await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    page_count = store._write_connection.execute("PRAGMA page_count").fetchone()[0]
    store._write_connection.execute(f"PRAGMA max_page_count = {page_count + 1}")
    with pytest.raises(StoreFailure, match="full"):
        await store.commit([Put("/registry/g/p/ns/big", b"x" * 200_000, 0)])
    store._write_connection.execute("PRAGMA max_page_count = 1073741823")
    await store.commit([Put("/registry/g/p/ns/big", b"x" * 200_000, 0)])
    assert {entry.key for entry in (await store.range("")).entries} == {"/registry/g/p/ns/a", "/registry/g/p/ns/big"}


async def test_the_cache_lists_follows_and_resumes(store: SqliteStore) -> None:
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


async def test_a_watch_goes_on_across_a_restart_as_far_as_the_store_remembers(store: SqliteStore) -> None:
    for value in (b"1", b"2", b"3"):
        await store.commit([Put("/registry/g/p/ns/a", value, None)])
    cache = Cache(store)
    await cache.start()
    again = cache.subscribe("/registry/g/p/", 1)
    assert [event.value for event in again.take()] == [b"2", b"3"]
    await cache.close()
    await store.compact(2)
    cache = Cache(store)
    await cache.start()
    assert [event.value for event in cache.subscribe("/registry/g/p/", 2).take()] == [b"3"]
    with pytest.raises(Compacted):
        cache.subscribe("/registry/g/p/", 1)
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


async def test_a_lost_race_says_up_to_where_to_read(store: SqliteStore) -> None:
    """The one who lost to a delete must see that the key is gone, which its own revision (none) cannot tell."""
    start = await store.commit([Put("/registry/g/p/ns/a", b"1", 0)])
    gone = await store.commit([Delete("/registry/g/p/ns/a", start)])
    with pytest.raises(Conflict) as lost:
        await store.commit([Put("/registry/g/p/ns/a", b"2", start)])
    assert (lost.value.actual, lost.value.revision) == (0, gone)


async def test_a_slow_subscriber_is_closed_and_others_go_on(store: SqliteStore) -> None:
    cache = Cache(store)
    await cache.start()
    slow = cache.subscribe("/registry/g/p/", cache.revision)
    other = cache.subscribe("/registry/g/p/ns/last", cache.revision)
    writes = [Put(f"/registry/g/p/ns/{n}", b"x", 0) for n in range(QUEUE + 10)]
    await store.commit(writes)
    await cache.wait_for(await store.commit([Put("/registry/g/p/ns/last", b"x", 0)]))
    with pytest.raises(Overrun):
        async for _ in slow:
            pass
    assert len(other.take()) == 1
    await cache.close()

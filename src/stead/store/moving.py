"""Backup, restore and copy of a whole store, whichever it is; judged by a hash over every key and value.

Called by `stead store`. Values are moved as they are stored: Secrets stay sealed, and the same keys open them. What is
put into a store gets new revisions, in the order of the old ones and after a floor, so that no resourceVersion that a
client ever saw runs backwards; history stays behind, and whoever watches lists anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from stead.store import etcd_filling, sqlite_files
from stead.store.backups import digest
from stead.store.contract import Entry, Put, Range, Store, StoreFailure, in_parts
from stead.store.etcd import EtcdStore
from stead.store.location import Location, open_store
from stead.store.sqlite import SqliteStore

#: A restored store goes on so far after the backup: more than anybody can have written after it was taken. Members of
#: etcd's own tools use the same figure (`etcdutl snapshot restore --bump-revision`).
LEAP = 1_000_000_000


async def contents(place: Location) -> Range:
    """All that a store holds at one revision; planes may run. Raises StoreFailure."""
    if not place.members:
        return await asyncio.to_thread(sqlite_files.snapshot, place.path)
    store = await open_store(place)
    try:
        return await store.range("")
    finally:
        await store.close()


async def put_into(place: Location, entries: Sequence[Entry], floor: int, what: str, *, replace: bool) -> str:
    """Make these the contents of a store that no plane uses; the hash of what is there then, read back.

    `what` is the operation, for people. Without `replace`, a store that holds anything is left alone. Raises
    StoreFailure; then a SQLite store is as it was, and one in etcd stays closed to planes until this succeeds.
    """
    if place.members:
        return await _put_into_etcd(place, entries, floor, what, replace)
    return await _put_into_file(place.path, entries, floor, replace)


async def _put_into_etcd(place: Location, entries: Sequence[Entry], floor: int, what: str, replace: bool) -> str:
    store = await open_store(place, to_fill=True)
    assert isinstance(store, EtcdStore)
    try:
        if not replace and not store.meta.filling and (await store.range("", limit=1)).entries:
            raise _not_empty(place)
        await etcd_filling.fill(store, entries, floor, what)
        found = await _check(store, entries)
        await etcd_filling.finish(store)
        return found
    finally:
        await store.close()


async def _put_into_file(path: Path, entries: Sequence[Entry], floor: int, replace: bool) -> str:
    if path.exists():
        old = await SqliteStore.open(path)  # refused while a plane runs
        floor = max(floor, old.revision)
        is_empty = not (await old.range("", limit=1)).entries
        await old.close()
        if not replace and not is_empty:
            raise _not_empty(path)
    new = path.with_name(f"{path.name}.new")
    await asyncio.to_thread(sqlite_files.begin, new, floor)
    store = await SqliteStore.open(new)
    try:
        ordered = sorted(entries, key=lambda entry: entry.mod_revision)
        for part in in_parts([Put(entry.key, entry.value, 0) for entry in ordered]):
            await store.commit(part)
        found = await _check(store, entries)
    finally:
        await store.close()
    await asyncio.to_thread(sqlite_files.put_in_place, new, path)
    return found


def _not_empty(where: object) -> StoreFailure:
    return StoreFailure(f"{where} holds a store already; --replace puts this one in its place")


async def _check(store: Store, entries: Sequence[Entry]) -> str:
    """The hash of what was written, read back. Raises StoreFailure when it is another."""
    wanted, found = digest(entries), digest((await store.range("")).entries)
    if found != wanted:
        raise StoreFailure(f"what was written is not what was read: SHA-256 {found}, not {wanted}")
    return found

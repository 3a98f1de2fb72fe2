"""Backup, restore and copy of a whole store, whichever it is; judged by a hash over every key and value.

Called by `stead store`. Values are moved as they are stored: Secrets stay sealed, and the same keys open them. What is
put into a store gets new revisions, in the order of the old ones and after a floor, so that no resourceVersion that a
client ever saw runs backwards; history stays behind, and whoever watches lists anew.

A backup is text: a line of JSON that says what it is, a line for each entry, and a last line with count and SHA-256. It
is read whole and checked before anything is changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from stead.store import etcd_filling, sqlite_files
from stead.store.contract import Entry, Put, Range, Store, StoreFailure, in_parts
from stead.store.etcd import EtcdStore
from stead.store.location import Location, open_store
from stead.store.sqlite import SqliteStore

#: A restored store goes on so far after the backup: more than anybody can have written after it was taken. Members of
#: etcd's own tools use the same figure (`etcdutl snapshot restore --bump-revision`).
LEAP = 1_000_000_000
_KIND = "stead-store-backup"


class _Head(msgspec.Struct, frozen=True):
    kind: str
    version: int
    revision: int


class _Tail(msgspec.Struct, frozen=True):
    count: int
    sha256: str


def digest(entries: Iterable[Entry]) -> str:
    """SHA-256 (hex) over keys and values in key order; revisions, which a move changes, are left out."""
    found = hashlib.sha256()
    for entry in sorted(entries, key=lambda each: each.key):
        key = entry.key.encode()
        found.update(b"%d %d " % (len(key), len(entry.value)) + key + entry.value)
    return found.hexdigest()


async def contents(place: Location) -> Range:
    """All that a store holds at one revision; planes may run. Raises StoreFailure."""
    if not place.members:
        return await asyncio.to_thread(sqlite_files.snapshot, place.path)
    store = await open_store(place)
    try:
        return await store.range("")
    finally:
        await store.close()


def write_backup(path: Path, found: Range) -> str:
    """Write the file (mode 0600, whole or not at all); its hash. Raises OSError, FileExistsError."""
    encode = msgspec.json.Encoder().encode
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    tail = _Tail(len(found.entries), digest(found.entries))
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"):
        pass  # never over another backup
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(encode(_Head(_KIND, 1, found.revision)) + b"\n")
        for entry in found.entries:
            file.write(encode(entry) + b"\n")
        file.write(encode(tail) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return tail.sha256


def read_backup(path: Path) -> Range:
    """What a backup holds. Raises OSError, StoreFailure when it is no backup, incomplete or damaged."""
    with path.open("rb") as file:
        lines = file.read().split(b"\n")
    try:
        head = msgspec.json.decode(lines[0], type=_Head)
        if head.kind != _KIND or head.version != 1:
            raise StoreFailure(f"{path} is no backup that this release reads")
        tail = msgspec.json.decode(lines[-2], type=_Tail)
        entries = [msgspec.json.decode(line, type=Entry) for line in lines[1:-2]]
    except (msgspec.DecodeError, IndexError) as error:
        raise StoreFailure(f"{path} is no backup, or not a whole one: {error}") from error
    if len(entries) != tail.count or digest(entries) != tail.sha256:
        raise StoreFailure(f"{path} is damaged: its contents are not those that its last line speaks of")
    return Range(tuple(entries), head.revision, False)


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

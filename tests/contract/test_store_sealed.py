"""Secrets on disk: a copy shows none, keys rotate, a store of before comes forward, a wrong key loses nothing."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pytest

from stead.store import keyring
from stead.store.contract import Conflict, Delete, Event, Put, StoreFailure
from stead.store.sealed import SealedStore
from stead.store.sqlite import SqliteStore

SECRET = "/registry/core/secrets/default/a"
OTHER = "/registry/core/configmaps/default/a"
PRECIOUS = b'{"data":{"password":"correct-horse-battery-staple"}}'
WORD = b"horse-battery"


def ring(*lines: str) -> keyring.Keyring:
    return keyring.parse("\n".join(lines), "test")


def on_disk(directory: Path) -> bytes:
    """All that somebody has who copies the database's files as they lie there, open or not."""
    return b"".join(path.read_bytes() for path in sorted(directory.glob("store.db*")))


async def first_events(store: SealedStore, after: int, count: int) -> list[Event]:
    found: list[Event] = []
    async for batch in store.watch(after):
        found.extend(batch)
        if len(found) >= count:
            break
    return found


async def sealed(path: Path, keys: keyring.Keyring) -> tuple[SqliteStore, SealedStore]:
    file = await SqliteStore.open(path)
    try:
        return file, await SealedStore.open(file, keys)
    except BaseException:
        await file.close()
        raise


async def test_a_copied_database_shows_no_secret_and_callers_see_it_whole(tmp_path: Path) -> None:
    file, store = await sealed(tmp_path / "store.db", ring(keyring.new_key()))
    one = await store.commit([Put(SECRET, PRECIOUS, 0)])
    two = await store.commit([Put(SECRET, PRECIOUS + b" ", one), Put(OTHER, b"not confidential", 0)])
    assert WORD not in on_disk(tmp_path)
    assert b"not confidential" in on_disk(tmp_path), "the control: plain values are found there"
    entry = await store.get(SECRET)
    assert entry is not None
    assert entry.value == PRECIOUS + b" "
    assert [found.value for found in (await store.range("/registry/core/secrets/")).entries] == [PRECIOUS + b" "]
    events = await first_events(store, 0, 3)
    assert [(event.value, event.previous) for event in events if event.key == SECRET] == [
        (PRECIOUS, None),
        (PRECIOUS + b" ", PRECIOUS),
    ]
    with pytest.raises(Conflict):
        await store.commit([Put(SECRET, b"x", one)])
    await store.commit([Delete(SECRET, two - 1)])
    assert await store.get(SECRET) is None
    await file.close()
    assert WORD not in on_disk(tmp_path)


async def test_a_store_with_plain_secrets_comes_forward_and_keeps_none(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    file = await SqliteStore.open(path)
    for number in range(250):
        await file.commit([Put(f"{SECRET}{number}", PRECIOUS, 0)])
    replaced = await file.commit([Put(SECRET, PRECIOUS, 0)])
    await file.commit([Put(SECRET, b'{"data":{"password":"other"}}', replaced)])
    assert WORD in on_disk(tmp_path)
    await file.close()
    keys = ring(keyring.new_key())
    file, store = await sealed(path, keys)
    assert store.resealed == 251
    await file.scrub()
    assert WORD not in on_disk(tmp_path), "neither current, nor replaced, nor in the log"
    found = {entry.key: entry.value for entry in (await store.range("/registry/core/secrets/")).entries}
    assert len(found) == 251
    assert found[f"{SECRET}7"] == PRECIOUS
    await file.close()
    file, store = await sealed(path, keys)
    assert store.resealed == 0, "once is enough"
    await file.close()


async def test_a_new_key_takes_over_and_the_old_one_may_go(tmp_path: Path) -> None:
    old, new = keyring.new_key(), keyring.new_key()
    file, store = await sealed(tmp_path / "store.db", ring(old))
    await store.commit([Put(SECRET, PRECIOUS, 0)])
    await file.close()
    file, store = await sealed(tmp_path / "store.db", ring("# newest first", new, old))
    assert store.resealed == 1
    await file.close()
    file, store = await sealed(tmp_path / "store.db", ring(new))
    entry = await store.get(SECRET)
    assert entry is not None
    assert entry.value == PRECIOUS
    await file.close()


async def test_a_wrong_key_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    right = ring(keyring.new_key())
    file, store = await sealed(tmp_path / "store.db", right)
    await store.commit([Put(SECRET, PRECIOUS, 0)])
    await file.close()
    with pytest.raises(StoreFailure, match=r"is sealed with the key .* not among those given.*nothing was changed"):
        await sealed(tmp_path / "store.db", ring(keyring.new_key()))
    file, store = await sealed(tmp_path / "store.db", right)
    entry = await store.get(SECRET)
    assert entry is not None
    assert entry.value == PRECIOUS
    await file.close()


async def test_a_value_that_was_moved_or_changed_on_disk_is_refused(tmp_path: Path) -> None:
    keys = ring(keyring.new_key())
    file, store = await sealed(tmp_path / "store.db", keys)
    await store.commit([Put(SECRET, PRECIOUS, 0)])
    await file.close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("UPDATE log SET key = ?", (SECRET + "-stolen",))
    with pytest.raises(StoreFailure, match="was changed after it was sealed"):
        await sealed(tmp_path / "store.db", keys)


def scripts(tmp_path: Path) -> Iterable[tuple[tuple[str, ...], str]]:
    yield ("sh", "-c", "exit 3"), "ended with 3"
    yield (str(tmp_path / "absent"),), "No such file"
    yield ("echo", "not base64!"), "not base64"
    yield ("echo", base64.b64encode(b"short").decode()), "32 bytes"
    yield ("true",), "one key a line"


def test_keys_come_from_a_file_or_from_a_command_and_what_is_wrong_is_said(tmp_path: Path) -> None:
    key = keyring.new_key()
    (tmp_path / "keys").write_text(f"{key} # made today\n\n")
    value = keyring.read(tmp_path / "keys").seal("a", b"v")
    assert keyring.read(tmp_path / "unused", ("echo", key)).open("a", value) == b"v"
    for command, told in scripts(tmp_path):
        with pytest.raises(keyring.KeyringError, match=told) as refused:
            keyring.read(tmp_path / "unused", command)
        assert key not in str(refused.value)
    with pytest.raises(keyring.KeyringError, match="absent"):
        keyring.read(tmp_path / "absent")

"""Secrets on disk: a copy shows none, keys rotate, a store of before comes forward, a wrong key loses nothing."""

from __future__ import annotations

import base64
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from stead.store import copies, keyring
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


async def older(path: Path) -> None:
    """A store as the release before Secrets were sealed left it."""
    file = await SqliteStore.open(path)
    first = await file.commit([Put(SECRET, PRECIOUS, 0)])
    await file.commit([Put(SECRET, PRECIOUS + b" ", first), Put(OTHER, b"not confidential", 0)])
    await file.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1")


async def test_the_copy_for_going_back_shows_no_secret_and_opens_again(tmp_path: Path) -> None:
    path, keys = tmp_path / "store.db", ring(keyring.new_key())
    await older(path)
    file, _ = await sealed(path, keys)
    await file.scrub()
    await file.close()
    copy = path.with_name("store.db.format-1")
    assert WORD in copy.read_bytes(), "the control: the migration's copy is plain"
    assert WORD not in path.read_bytes()
    copy.with_name("store.db.format-1.partial").write_bytes(PRECIOUS)  # as an interruption leaves it
    assert copies.seal_plain(path, keys) == [copy]
    assert WORD not in on_disk(tmp_path)
    assert copies.seal_plain(path, keys) == [], "once is enough"
    with pytest.raises(keyring.KeyringError):
        copies.open_copy(copy, tmp_path / "no.db", ring(keyring.new_key()))
    assert not list(tmp_path.glob("no.db*"))
    back = tmp_path / "back" / "store.db"
    back.parent.mkdir()
    copies.open_copy(copy, back, keys)
    with sqlite3.connect(back) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        values = [row[0] for row in connection.execute("SELECT value FROM log WHERE key = ?", (SECRET,))]
    assert values == [PRECIOUS, PRECIOUS + b" "]
    with pytest.raises(StoreFailure, match="exists"):
        copies.open_copy(copy, back, keys)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_keys_come_from_a_tpm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TPM in software, spoken to by the tools that speak to a real one."""
    if not (shutil.which("swtpm") and shutil.which("tpm2_unseal")):
        pytest.skip("needs swtpm and tpm2-tools")
    state = tmp_path / "tpm"
    state.mkdir()
    port = next(port for port in range(23210, 23290, 2) if is_free(port) and is_free(port + 1))
    tpm = subprocess.Popen([
        "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--flags", "not-need-init,startup-clear",
        "--server", f"type=tcp,port={port},bindaddr=127.0.0.1",
        "--ctrl", f"type=tcp,port={port + 1},bindaddr=127.0.0.1",
    ])  # fmt: skip
    try:
        monkeypatch.setenv("TPM2TOOLS_TCTI", f"swtpm:host=127.0.0.1,port={port}")
        while is_free(port + 1):
            assert tpm.poll() is None, "swtpm ended"
            time.sleep(0.05)
        key = keyring.new_key()
        steps = (
            "tpm2_createprimary -C o -c primary.ctx", "tpm2_create -C primary.ctx -i - -u k.pub -r k.priv",
            "tpm2_load -C primary.ctx -u k.pub -r k.priv -c k.ctx",
            "tpm2_evictcontrol -C o -c k.ctx 0x81010001",
        )  # fmt: skip
        for step in steps:
            subprocess.run(step.split(), cwd=tmp_path, input=f"{key}\n".encode(), check=True, capture_output=True)
            subprocess.run(["tpm2_flushcontext", "-t"], check=True)  # a kernel's resource manager would do it
        value = ring(key).seal("a", b"v")
        assert keyring.read(tmp_path / "unused", (), "0x81010001").open("a", value) == b"v"
        with pytest.raises(keyring.KeyringError, match="secrets_key_tpm 0x81010009"):
            keyring.read(tmp_path / "unused", (), "0x81010009")
    finally:
        tpm.terminate()
        tpm.wait(10)

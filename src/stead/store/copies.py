"""Copies of the store that migrations leave for going back: Secrets in plain there are sealed, and opened again.

`seal_plain` is called by the composition root once the migrated store opens; `open_copy` by `stead store open-copy`,
for who goes back to a release that cannot open sealed Secrets. Both work on a file beside the copy and rename it when
it is whole, so that an interruption leaves what was there. Both block. Raise StoreFailure, KeyringError.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

from stead.store.contract import StoreFailure
from stead.store.keyring import MARK, Keyring
from stead.store.sealed import PREFIXES

#: rows changed in one go
_BATCH = 200


def seal_plain(store: Path, keyring: Keyring) -> list[Path]:
    """Seal what lies in plain in the copies beside `store`; those that were changed."""
    changed = []
    for left in store.parent.glob(f"{store.name}.format-*.partial*"):
        left.unlink()  # by an interruption
    for path in sorted(store.parent.glob(f"{store.name}.format-*")):
        if path.suffix.removeprefix(".format-").isdigit() and _has_plain(path):
            _rewritten(path, path, lambda key, value: value if value.startswith(MARK) else keyring.seal(key, value))
            changed.append(path)
    return changed


def open_copy(path: Path, target: Path, keyring: Keyring) -> None:
    """Write the copy at `path` to `target`, its Secrets in plain. `target` must not exist."""
    if target.exists():
        raise StoreFailure(f"{target} exists")
    _rewritten(path, target, keyring.open)


def _has_plain(path: Path) -> bool:
    try:
        connection = sqlite3.connect(f"file:{path}?immutable=1", uri=True)
        try:
            return any(
                connection.execute(
                    "SELECT 1 FROM log WHERE key >= ? AND key < ? AND value IS NOT NULL AND substr(value, 1, ?) != ?",
                    (prefix, f"{prefix}\U0010ffff", len(MARK), MARK),
                ).fetchone()
                for prefix in PREFIXES
            )
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreFailure(f"cannot read {path}: {error}") from error


def _rewritten(path: Path, target: Path, change: Callable[[str, bytes], bytes]) -> None:
    """`target` as `path` with its Secrets changed, and no byte of what they were."""
    partial = target.with_name(f"{target.name}.partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    shutil.copyfile(path, partial)
    shutil.copystat(path, partial)
    owner = path.stat()
    os.chown(partial, owner.st_uid, owner.st_gid)
    try:
        connection = sqlite3.connect(partial, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("PRAGMA journal_mode=OFF")  # nobody needs this file if we are interrupted
            for prefix in PREFIXES:
                _change_rows(connection, prefix, change)
            connection.execute("VACUUM")
        finally:
            connection.close()
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(target)
    except sqlite3.Error as error:
        raise StoreFailure(f"cannot rewrite {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _change_rows(connection: sqlite3.Connection, prefix: str, change: Callable[[str, bytes], bytes]) -> None:
    position = -1
    while True:
        rows = connection.execute(
            "SELECT revision, key, value FROM log WHERE key >= ? AND key < ? AND value IS NOT NULL AND revision > ? "
            "ORDER BY revision LIMIT ?",
            (prefix, f"{prefix}\U0010ffff", position, _BATCH),
        ).fetchall()
        if not rows:
            return
        for revision, key, value in rows:
            connection.execute("UPDATE log SET value = ? WHERE revision = ?", (change(key, bytes(value)), revision))
        position = rows[-1][0]

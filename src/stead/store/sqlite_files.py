"""Whole files of the embedded store: what one holds while a plane runs, and a new one that goes on from a revision.

Used by `store.moving` for backup, restore and copy. Everything blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from stead.store.contract import Entry, Range, StoreFailure
from stead.store.migrations import FORMAT, TooNew, migrate

#: what goes with a database file while it is open
_COMPANIONS = ("-wal", "-shm")


def snapshot(path: Path) -> Range:
    """All current entries at one revision, also while a plane writes. Raises StoreFailure, TooNew."""
    if not path.exists():
        raise StoreFailure(f"there is no store {path}")
    current: dict[str, Entry] = {}
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
            found = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if found > FORMAT:
                raise TooNew(path, found)
            connection.execute("BEGIN")
            revision = 0
            rows = connection.execute("SELECT revision, key, value, created FROM log ORDER BY revision")
            for at, key, value, created in rows:
                revision = at
                if value is None:
                    current.pop(key, None)
                else:
                    current[key] = Entry(key, value, created, at)
            known = connection.execute("SELECT number FROM meta WHERE name IN ('compacted', 'floor')")
            revision = max(revision, *(number for (number,) in known), 0)
    except sqlite3.Error as error:
        raise StoreFailure(f"cannot read store {path}: {error}") from error
    return Range(tuple(current[key] for key in sorted(current)), revision, False)


def begin(path: Path, floor: int) -> None:
    """An empty store at `path` whose first revision comes after `floor`. Raises StoreFailure."""
    for name in ("", *_COMPANIONS, ".lock"):
        path.with_name(path.name + name).unlink(missing_ok=True)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        migrate(path)
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("INSERT INTO meta (name, number) VALUES ('floor', ?)", (floor,))
    except (sqlite3.Error, OSError) as error:
        raise StoreFailure(f"cannot make store {path}: {error}") from error


def put_in_place(new: Path, path: Path) -> Path | None:
    """Give a complete, closed store its place; what was there is kept under the name that is returned."""
    owner = path.parent.stat()
    kept = None
    if path.exists():
        kept = path.with_name(f"{path.name}.replaced")
        for name in ("", *_COMPANIONS):  # a log that belongs to another file would be applied to this one
            old = path.with_name(path.name + name)
            target = kept.with_name(kept.name + name)
            target.unlink(missing_ok=True)
            if old.exists():
                old.rename(target)
    if os.geteuid() == 0:
        os.chown(new, owner.st_uid, owner.st_gid)
    new.rename(path)
    new.with_name(f"{new.name}.lock").unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return kept

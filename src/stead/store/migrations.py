"""The format of the embedded store: its version, migration forward, and refusal of a newer one.

`migrate` runs before the store opens. An older file is first copied whole beside itself (`store.db.format-N`), then
brought forward in one transaction; if that fails, the file is as it was. A file that a newer Stead has written is
refused, since reading it by older rules could lose what those rules do not know.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

#: Format that this release reads and writes.
FORMAT = 2


class TooNew(Exception):
    """The store was written by a newer release."""

    def __init__(self, where: object, found: int, known: int = FORMAT) -> None:
        super().__init__(
            f"store {where} has format {found}, this release knows formats up to {known}; "
            "start the release that wrote it, or restore a backup taken before the upgrade"
        )
        self.found = found


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID")
    connection.execute(
        "CREATE TABLE log (revision INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB, "
        "created INTEGER NOT NULL, replaces INTEGER NOT NULL)"
    )


def _seal(connection: sqlite3.Connection) -> None:
    """Secrets may be sealed from format 2 on (`store.sealed` does it): a release that cannot open them stays away."""


#: Step N brings format N to N + 1.
STEPS: tuple[Callable[[sqlite3.Connection], None], ...] = (_create, _seal)


def migrate(path: Path, steps: tuple[Callable[[sqlite3.Connection], None], ...] = STEPS) -> None:
    """Bring the file at `path` to the newest format. Raises TooNew, sqlite3.Error (then nothing has changed)."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=10)
    try:
        found = int(connection.execute("PRAGMA user_version").fetchone()[0])
        target = len(steps)
        if found > target:
            raise TooNew(path, found)
        if found == target:
            return
        if found > 0:
            _copy(connection, path.with_name(f"{path.name}.format-{found}"))
        connection.execute("BEGIN IMMEDIATE")
        try:
            for step in steps[found:]:
                step(connection)
            connection.execute(f"PRAGMA user_version = {target}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
    finally:
        connection.close()


def _copy(connection: sqlite3.Connection, target: Path) -> None:
    target.unlink(missing_ok=True)
    target.touch(mode=0o600)
    backup = sqlite3.connect(target)
    try:
        connection.backup(backup)
    finally:
        backup.close()

"""A plane that writes down when each commit was on the disk, for `stead bench watch`.

Run as a program (`python stamped.py FILE plane`), it puts itself behind the store's commit and appends a line for each
write that carries a number (`"stamp":"N"`): the number and the time by the clock that all processes of a host share.
Everything else is `stead plane` as users run it.
"""

from __future__ import annotations

import os
import re
import sys
import time
from typing import Any

STAMP = re.compile(rb'"stamp":\s*"(\d+)"')


def install(path: str) -> None:
    """From now on commits are written down in `path`."""
    from stead.store.sqlite import SqliteStore

    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    tell = SqliteStore._tell

    def told(store: SqliteStore, events: Any, answers: Any) -> None:
        now = time.perf_counter()
        found = [match[1] for event in events if (match := STAMP.search(event.value or b""))]
        if found:
            os.write(handle, b"".join(b"%b %.7f\n" % (number, now) for number in found))
        tell(store, events, answers)

    SqliteStore._tell = told  # type: ignore[method-assign]  # this is what the module is for


if __name__ == "__main__":
    install(sys.argv[1])
    sys.argv = ["stead", *sys.argv[2:]]
    from stead.cli.main import main

    main()

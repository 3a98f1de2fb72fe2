"""Planes that are known to be wrong, for the controls of `etcd`: `python etcd_broken.py HOW plane`.

`hasty` answers a write before etcd has it. `stale` answers reads from its cache without asking etcd what is newest.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from stead.store.contract import Delete, Put
from stead.store.etcd import EtcdStore

#: what goes on in the background
_late: set[asyncio.Task[int]] = set()


def _be_hasty() -> None:
    from stead.server.registry import Registry

    async def commit(self: Registry, writes: Sequence[Put | Delete]) -> int:
        task = asyncio.create_task(self._store.commit(writes))
        _late.add(task)
        task.add_done_callback(lambda done: (_late.discard(done), done.cancelled() or done.exception()))
        return self.cache.revision + 1

    Registry.commit = commit  # type: ignore[method-assign]  # broken on purpose


def _be_stale() -> None:
    async def latest(self: EtcdStore) -> int:
        return 0

    EtcdStore.latest = latest  # type: ignore[method-assign]  # broken on purpose


def main(how: str, *command: str) -> None:
    """See the module's prose."""
    {"hasty": _be_hasty, "stale": _be_stale}[how]()
    from stead.cli.main import main as stead

    stead(list(command))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The format of a store in etcd: migration forward, once, whichever of several planes comes first.

`store.location` calls `migrate` when it opens a store of an older format. All objects are first written into a backup
file, which `stead store restore` of the older release reads. Then `meta` says what goes on: planes of the older release
are fenced by that and end, and no plane opens the store until it is done. Steps must be repeatable, since a migration
that was interrupted begins again; they change objects by `etcd_filling.change`, in parts that etcd takes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from stead.store import backups
from stead.store.etcd import MIGRATION, EtcdStore
from stead.store.etcd_filling import finish, set_meta

Step = Callable[[EtcdStore], Awaitable[None]]

#: Step N brings format N + 1 to N + 2: there has been one format so far.
STEPS: tuple[Step, ...] = ()


async def migrate(store: EtcdStore, folder: Path, steps: tuple[Step, ...] = STEPS) -> None:
    """Bring an opened store to the newest format. Raises StoreFailure, also when another plane does it now; OSError."""
    found = store.meta.format
    if not store.meta.filling:
        copy = folder / f"{store.base.removeprefix('/')}.etcd-format-{found}"
        with contextlib.suppress(FileExistsError):  # of an attempt before
            await asyncio.to_thread(backups.write, copy, await store.range(""))
        await set_meta(store, msgspec.structs.replace(store.meta, filling=f"{MIGRATION} from format {found}"))
    for step in steps[found - 1 :]:
        await step(store)
    await set_meta(store, msgspec.structs.replace(store.meta, format=len(steps) + 1))
    await finish(store)

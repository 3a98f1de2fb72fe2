"""Filling a store in etcd with the contents of another one: a restore, or a copy.

Used by `store.moving`. First `meta` is changed, which fences every plane that still has the store open, and says what
goes on, so that no plane opens a store that is half filled; it is changed back at the end. Interrupted at any line, the
same is done again from the beginning. The offset is raised so that no resourceVersion ever runs backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from stead.store.contract import Entry, Put, StoreFailure, in_parts
from stead.store.etcd import EtcdStore, Meta, Superseded
from stead.store.etcd_gateway import RangeAnswer, TxnAnswer, delete_below, equals, packed, put


async def fill(store: EtcdStore, entries: Sequence[Entry], floor: int, what: str) -> None:
    """Replace all that the store (opened `to_fill`) holds; its revisions go on after `floor` and after its own.

    Raises StoreFailure; then the store stays closed to planes until the same is done again.
    """
    floor = max(floor, await store.latest())
    now = await store.gateway.read("/v3/kv/range", {"key": packed(store.meta_key)}, RangeAnswer)
    offset = max(store.meta.offset, floor - now.header.revision)
    await set_meta(store, Meta(offset=offset, floor=floor, filling=what))
    await change(store, [delete_below(f"{store.base}/")])
    ordered = sorted(entries, key=lambda entry: entry.mod_revision)
    for part in in_parts([Put(entry.key, entry.value, None) for entry in ordered]):
        await change(store, [put(store.base + write.key, write.value) for write in part] + [put(store.head_key, b"")])


async def finish(store: EtcdStore) -> None:
    """Open the filled store to planes."""
    await set_meta(store, msgspec.structs.replace(store.meta, filling=""))


async def set_meta(store: EtcdStore, meta: Meta) -> None:
    """Write `meta`, which fences whoever has read another one."""
    revision = await change(store, [put(store.meta_key, msgspec.json.encode(meta))])
    store.meta, store.meta_revision = meta, revision


async def change(store: EtcdStore, operations: list[dict[str, Any]]) -> int:
    """One transaction, as long as nobody else fills or opens the store; etcd's revision of it."""
    body = {"compare": [equals(store.meta_key, store.meta_revision)], "success": operations}
    answer = await store.gateway.write("/v3/kv/txn", body, TxnAnswer)
    if not answer.succeeded:
        raise StoreFailure("somebody else changes this store at the same time") from Superseded()
    return answer.header.revision

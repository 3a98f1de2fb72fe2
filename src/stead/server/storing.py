"""The last step of a write: the size cap, the quota's place, and the compare-and-swap.

Called by `verbs` and `deletion`. On the event loop; a write is there when `put` returns, and reads show it.
"""

from __future__ import annotations

from stead.server.bodies import too_large
from stead.server.calls import Call
from stead.server.quota import Quotas
from stead.server.registry import Object, Record, Registry, stored_bytes
from stead.store import contract as stores

#: bytes of an object's JSON that are stored (etcd's limit for one request)
MAX_OBJECT_BYTES = 1536 * 1024


class Storing:
    """See the module's prose."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._quotas = Quotas(registry)

    async def put(self, call: Call, key: str, obj: Object, expected: int) -> Record:
        """Write and return the new state; a dry run returns it with the old revision (0: none)."""
        value = stored_bytes(obj)
        if len(value) > MAX_OBJECT_BYTES:
            raise too_large(MAX_OBJECT_BYTES)
        if call.options.dry_run:
            with self._quotas.place(call.resource, call.namespace, obj):
                return Record(key, expected, value)
        put = stores.Put(key, value, expected)
        revision = await self._quotas.commit(call.resource, call.namespace, obj, put)
        return self._registry.record(key, revision, value)

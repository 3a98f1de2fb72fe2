"""Quotas at the door: a write that would take more than a ResourceQuota allows is refused before it is stored.

Called for the commit of each write. What is taken is counted from memory and from the writes under way, without an
await between counting and holding a place, so that concurrent creates of this process cannot pass together.

Planes that share a store hold no places for each other. There a write that takes more of a quota commits the quota's
new `status.used` with it, in one transaction that asks for the quota's revision as it was counted: of two planes that
take from one quota one loses, learns what the other wrote (which came with that revision), and counts again. In one
process such writes go one after another. One event loop. Text: Kubernetes' admission plugin resourcequota.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import msgspec

from stead.kinds import register, usage
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError, conflict
from stead.kube.quantity import Quantity, parse
from stead.server.registry import Registry, stored_bytes
from stead.store import contract as stores

Object = dict[str, Any]
_ZERO = Quantity(0)
#: how often a write counts again because another plane took from the same quota
TRIES = 32


class _Held(msgspec.Struct, eq=False):
    """One write under way."""

    resource: Resource
    namespace: str
    name: str
    obj: Object


class Quotas:
    """See the module's prose."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._held: list[_Held] = []
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def commit(self, resource: Resource, namespace: str, obj: Object, write: stores.Put) -> int:
        """Store `obj`; the revision. Raises 403, 409 when other planes keep being first, `store.contract.Conflict`."""
        with self.place(resource, namespace, obj) as marks:
            if not (marks and self._registry.is_shared):
                return await self._registry.commit([write])
        for _ in range(TRIES):
            async with self._turn(namespace):
                with self.place(resource, namespace, obj) as marks:
                    try:
                        return await self._registry.commit([*marks, write])
                    except stores.Conflict as lost:
                        if not marks or lost.key == write.key:
                            raise
                        revision = lost.revision
            await self._registry.settle(revision)
        raise conflict(register.RESOURCE_QUOTA.plural, "", register.RESOURCE_QUOTA.group)

    def _turn(self, namespace: str) -> asyncio.Lock:
        """What writes to one namespace take in turn."""
        return self._turns.setdefault(namespace, asyncio.Lock())

    @contextlib.contextmanager
    def place(self, resource: Resource, namespace: str, obj: Object) -> Iterator[list[stores.Put]]:
        """Hold what `obj` takes while it is written; gives the quotas that grow by it, as they will be. Raises 403."""
        quotas = self._registry.peek_all(register.RESOURCE_QUOTA, namespace) if namespace else []
        if not quotas:
            yield []
            return
        name = obj["metadata"]["name"]
        old = self._registry.peek(resource, namespace, name)
        marks = [mark for quota in quotas if (mark := self._check(quota, resource, old, obj))]
        held = _Held(resource, namespace, name, obj)
        self._held.append(held)
        try:
            yield marks
        finally:
            self._held.remove(held)

    def _check(self, quota: Object, resource: Resource, old: Object | None, new: Object) -> stores.Put | None:
        hard = (quota.get("spec") or {}).get("hard") or {}
        before = usage.amounts(resource, old) if old is not None and usage.concerns(quota, resource, old) else {}
        after = usage.amounts(resource, new) if usage.concerns(quota, resource, new) else {}
        more = {name: after[name] - before.get(name, _ZERO) for name in hard if name in after}
        more = {name: amount for name, amount in more.items() if amount > _ZERO}
        if not more:
            return None
        namespace = new["metadata"]["namespace"]
        taken = usage.used(quota, lambda kind: self._objects(kind, namespace))
        over = sorted(name for name in more if taken[name] + more[name] > parse(hard[name]))
        name, revision = quota["metadata"]["name"], int(quota["metadata"]["resourceVersion"])
        if over:
            requested, there = (",".join(f"{n}={part[n]}" for n in over) for part in (more, taken))
            limited = ",".join(f"{n}={parse(hard[n])}" for n in over)
            text = f"exceeded quota: {name}, requested: {requested}, used: {there}, limited: {limited}"
            raise refused(resource, new["metadata"]["name"], text)
        status = usage.reported(quota, {name: taken[name] + more.get(name, _ZERO) for name in taken})
        key = self._registry.key(register.RESOURCE_QUOTA, namespace, name)
        return stores.Put(key, stored_bytes({**quota, "status": status}), revision)

    def _objects(self, resource: Resource, namespace: str) -> list[Object]:
        """Those of a kind as they are, and those that are being made."""
        found = {obj["metadata"]["name"]: obj for obj in self._registry.peek_all(resource, namespace)}
        for held in self._held:
            if held.resource is resource and held.namespace == namespace:
                known = found.get(held.name)
                found[held.name] = held.obj if known is None else _greater(resource, known, held.obj)
        return list(found.values())


def _greater(resource: Resource, one: Object, other: Object) -> Object:
    """Of two states of an object that which takes more (a write under way may still fail)."""
    first, second = usage.amounts(resource, one), usage.amounts(resource, other)
    return other if any(amount > first.get(name, _ZERO) for name, amount in second.items()) else one


def refused(resource: Resource, name: str, text: str) -> ApiError:
    """403 of an admission rule."""
    qualified = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
    details = {"name": name, "group": resource.group, "kind": resource.plural}
    return ApiError("Forbidden", f'{qualified} "{name}" is forbidden: {text}', details)

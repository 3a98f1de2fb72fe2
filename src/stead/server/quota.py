"""Quotas at the door: a write that would take more than a ResourceQuota allows is refused before it is stored.

Called by `verbs` around the commit of each write. What is taken is counted from memory and from the writes under way,
without an await between counting and holding a place, so that concurrent creates cannot pass together; nothing waits
for the counts in `status.used`, which `controllers.quota` keeps for people. One event loop. Text: Kubernetes' admission
plugin resourcequota.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec

from stead.kinds import register, usage
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError
from stead.kube.quantity import Quantity, parse
from stead.server.registry import Registry

Object = dict[str, Any]
_ZERO = Quantity(0)


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

    @contextlib.contextmanager
    def place(self, resource: Resource, namespace: str, obj: Object) -> Iterator[None]:
        """Hold what `obj` takes while it is written. Raises 403."""
        quotas = self._registry.peek_all(register.RESOURCE_QUOTA, namespace) if namespace else []
        if not quotas:
            yield
            return
        name = obj["metadata"]["name"]
        old = self._registry.peek(resource, namespace, name)
        for quota in quotas:
            self._check(quota, resource, old, obj)
        held = _Held(resource, namespace, name, obj)
        self._held.append(held)
        try:
            yield
        finally:
            self._held.remove(held)

    def _check(self, quota: Object, resource: Resource, old: Object | None, new: Object) -> None:
        hard = (quota.get("spec") or {}).get("hard") or {}
        before = usage.amounts(resource, old) if old is not None and usage.concerns(quota, resource, old) else {}
        after = usage.amounts(resource, new) if usage.concerns(quota, resource, new) else {}
        more = {name: after[name] - before.get(name, _ZERO) for name in hard if name in after}
        more = {name: amount for name, amount in more.items() if amount > _ZERO}
        if not more:
            return
        namespace = new["metadata"]["namespace"]
        taken = usage.used(quota, lambda kind: self._objects(kind, namespace))
        over = sorted(name for name in more if taken[name] + more[name] > parse(hard[name]))
        if over:
            name = quota["metadata"]["name"]
            requested, there = (",".join(f"{n}={part[n]}" for n in over) for part in (more, taken))
            limited = ",".join(f"{n}={parse(hard[n])}" for n in over)
            text = f"exceeded quota: {name}, requested: {requested}, used: {there}, limited: {limited}"
            raise refused(resource, new["metadata"]["name"], text)

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

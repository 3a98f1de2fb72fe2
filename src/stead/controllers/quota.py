"""What is taken of each quota: `status.hard` and `status.used` of ResourceQuotas, for people and clients to read.

Started by `controllers.start` on rungs 1 and 2. The server refuses by its own count; this one follows it. A change of
an object that a quota of its namespace counts makes all quotas of that namespace be counted again. Where planes share a
store, a write that takes more of a quota writes the status too (`server.quota`); this one counts what was given back.
Rules: Kubernetes' resource quota controller.
"""

from __future__ import annotations

from typing import Any

from stead.client.informer import Informer, Key
from stead.controllers.conditions import is_deleting, status_of
from stead.controllers.runner import Controller, Source, World, own_key
from stead.controllers.writes import write_status
from stead.kinds import register, usage
from stead.kinds.resource import Resource

Object = dict[str, Any]

_COUNTED = tuple(r for r in register.ALL if r.namespaced and {"list", "watch"} <= set(r.verbs) and r.kind != "Event")


def decide_status(quota: Object, objects: dict[str, list[Object]]) -> Object:
    """The quota's status; `objects` of its namespace by count name."""
    return usage.reported(quota, usage.used(quota, lambda kind: objects.get(usage.count_name(kind), [])))


class QuotaCounts:
    """The controller's hands."""

    def __init__(self, world: World) -> None:
        self._client = world.client
        self._quotas = world.informers.of(register.RESOURCE_QUOTA)
        self._informers: dict[str, Informer] = {}
        for resource in _COUNTED:
            informer = self._informers[usage.count_name(resource)] = world.informers.of(resource)
            informer.add_index("namespace", _namespace)

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        sources = [Source(self._quotas, own_key)]
        for resource in _COUNTED:
            sources.append(Source(self._informers[usage.count_name(resource)], self._counting(resource)))
        return Controller("quota", self.reconcile, tuple(sources), workers=2)

    def _counting(self, resource: Resource) -> Any:
        def keys(obj: Object) -> list[Key]:
            namespace = obj["metadata"].get("namespace", "")
            quotas = self._quotas.by_index("namespace", namespace)
            return [Key(namespace, q["metadata"]["name"]) for q in quotas if resource in usage.kinds_of(q)]

        return keys

    async def reconcile(self, key: Key) -> None:
        """Count one quota."""
        quota = self._quotas.get(*key)
        if quota is None or is_deleting(quota):
            return
        objects = {}
        for kind in usage.kinds_of(quota):
            name = usage.count_name(kind)
            objects[name] = self._informers[name].by_index("namespace", key.namespace)
        status = decide_status(quota, objects)
        if status != status_of(quota):
            await write_status(self._client, register.RESOURCE_QUOTA, quota, status)


def _namespace(obj: Object) -> list[str]:
    return [obj["metadata"].get("namespace", "")]

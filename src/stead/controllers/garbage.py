"""Garbage collection by owner references: background, foreground and orphaning deletion.

Started by `controllers.start` on rungs 1 and 2 (elsewhere kube-controller-manager does it). Looks at every kind that
can be listed. An object goes when all of its owners are gone (by uid); an owner with the finalizer `foregroundDeletion`
goes after the dependents that block it; one with `orphan` is let go after its references were cut. An owner is looked
for in the dependent's namespace or cluster-wide; a cluster-scoped dependent of a namespaced owner never counts as
orphaned. That an owner is absent is believed only from a live read. Rules: Kubernetes' garbage collector.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

from stead.client.informer import Informer
from stead.controllers.conditions import has_finalizer, is_deleting
from stead.controllers.runner import Controller, Source, World
from stead.controllers.writes import delete_if_there, finalizer_steps, guarded_patch, read
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError

Object = dict[str, Any]

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
REMEMBERED_ABSENT = 10_000
WAIT_SECONDS = 2.0


class Item(NamedTuple):
    """Which object, of which kind."""

    group: str
    plural: str
    namespace: str
    name: str


class Garbage:
    """The collector. `resources`: all kinds to look at."""

    def __init__(self, world: World, resources: tuple[Resource, ...]) -> None:
        self._world = world
        self._client = world.client
        self._resources = {(r.group, r.plural): r for r in resources}
        self._by_kind = {(r.group, r.kind): r for r in resources}
        self._informers: dict[tuple[str, str], Informer] = {}
        self._absent: OrderedDict[str, None] = OrderedDict()
        for identity, resource in self._resources.items():
            informer = self._informers[identity] = world.informers.of(resource)
            informer.add_index("owner", owner_uids)

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        sources = tuple(
            Source(informer, self._keys_for(self._resources[identity]))
            for identity, informer in self._informers.items()
        )
        return Controller("garbage", self.reconcile, sources, workers=2)

    def _keys_for(self, resource: Resource) -> Any:
        def keys(obj: Object) -> list[Item]:
            """The object itself if it matters, its dependents (an owner may have gone), and owners that wait for it."""
            metadata = obj["metadata"]
            references = metadata.get("ownerReferences") or ()
            found = []
            if references or is_deleting(obj):
                found.append(_item(resource, obj))
            dependents = self._dependents(metadata.get("uid", ""))
            found += [_item(r, d) for r, d in dependents]
            for reference in references:
                owner = self._cached_owner(obj, reference)
                if owner is not None and is_deleting(owner[1]):
                    found.append(_item(*owner))
            return found

        return keys

    def _dependents(self, uid: str) -> list[tuple[Resource, Object]]:
        return [
            (self._resources[identity], obj)
            for identity, informer in self._informers.items()
            for obj in (informer.by_index("owner", uid) if uid else ())
        ]

    def _owner_resource(self, reference: Object) -> Resource | None:
        return self._by_kind.get((reference.get("apiVersion", "").rpartition("/")[0], reference.get("kind", "")))

    def _cached_owner(self, obj: Object, reference: Object) -> tuple[Resource, Object] | None:
        resource = self._owner_resource(reference)
        if resource is None:
            return None
        namespace = obj["metadata"].get("namespace", "") if resource.namespaced else None
        found = self._informers[(resource.group, resource.plural)].get(namespace, reference.get("name", ""))
        return (resource, found) if found is not None and found["metadata"]["uid"] == reference.get("uid") else None

    async def reconcile(self, item: Item) -> float | None:
        """Collect one object if its owners are gone; work off its own foreground or orphaning deletion."""
        resource = self._resources[(item.group, item.plural)]
        obj = self._informers[(item.group, item.plural)].get(item.namespace, item.name)
        if obj is None:
            return None
        if is_deleting(obj):
            if has_finalizer(obj, ORPHAN):
                return await self._orphan(resource, obj)
            if has_finalizer(obj, FOREGROUND):
                return await self._foreground(resource, obj)
            return None
        return await self._collect(resource, obj)

    async def _collect(self, resource: Resource, obj: Object) -> float | None:
        references = obj["metadata"].get("ownerReferences") or ()
        if not references:
            return None
        solid: list[Object] = []
        waiting: list[Object] = []
        for reference in references:
            owner = await self._owner(resource, obj, reference)
            if owner is None:
                continue
            goes_first = is_deleting(owner) and has_finalizer(owner, FOREGROUND)
            (waiting if goes_first else solid).append(reference)
        if solid:
            return None
        blocking = any(has_blocking(r) for r in waiting) and self._dependents(obj["metadata"]["uid"])
        propagation = "Foreground" if waiting and blocking else "Background"
        await delete_if_there(self._client, resource, obj, propagation)
        return None

    async def _owner(self, resource: Resource, obj: Object, reference: Object) -> Object | None:
        """The live owner, or None if it is surely absent. An owner of a kind unknown to us counts as present."""
        uid = reference.get("uid", "")
        if uid in self._absent:
            return None
        kind = self._owner_resource(reference)
        if kind is None or (kind.namespaced and not resource.namespaced):
            return obj
        cached = self._cached_owner(obj, reference)
        if cached is not None:
            return cached[1]
        namespace = obj["metadata"].get("namespace") if kind.namespaced else None
        live = await read(self._client, kind, namespace, reference.get("name", ""))
        if live is not None and live["metadata"]["uid"] == uid:
            return live
        self._absent[uid] = None
        while len(self._absent) > REMEMBERED_ABSENT:
            self._absent.popitem(last=False)
        return None

    async def _orphan(self, resource: Resource, owner: Object) -> float | None:
        """Cut the references of all dependents, then let the owner go."""
        uid = owner["metadata"]["uid"]
        for kind, dependent in self._dependents(uid):
            kept = [r for r in dependent["metadata"]["ownerReferences"] if r.get("uid") != uid]
            step: Object = {"op": "add", "path": "/metadata/ownerReferences", "value": kept}
            if not kept:
                step = {"op": "remove", "path": "/metadata/ownerReferences"}
            try:
                await guarded_patch(self._client, kind, dependent, [step])
            except ApiError as error:
                if error.code != 404:
                    raise
        await guarded_patch(self._client, resource, owner, finalizer_steps(owner, remove=ORPHAN))
        return None

    async def _foreground(self, resource: Resource, owner: Object) -> float | None:
        """Delete the dependents; let the owner go once none of those that block it is left."""
        blocking = False
        for kind, dependent in self._dependents(owner["metadata"]["uid"]):
            if any(has_blocking(r) and r.get("uid") == owner["metadata"]["uid"] for r in _references(dependent)):
                blocking = True
            if not is_deleting(dependent):
                await self._collect(kind, dependent)
        if blocking:
            return WAIT_SECONDS
        await guarded_patch(self._client, resource, owner, finalizer_steps(owner, remove=FOREGROUND))
        return None


def owner_uids(obj: Object) -> list[str]:
    """uids of all owners."""
    return [r.get("uid", "") for r in _references(obj)]


def has_blocking(reference: Object) -> bool:
    """Whether the owner must wait for this dependent in a foreground deletion."""
    return bool(reference.get("blockOwnerDeletion"))


def _references(obj: Object) -> list[Object]:
    return list(obj["metadata"].get("ownerReferences") or ())


def _item(resource: Resource, obj: Object) -> Item:
    metadata = obj["metadata"]
    return Item(resource.group, resource.plural, metadata.get("namespace", ""), metadata["name"])

"""An API server's meaning in memory, as a `client.contract.Client`: for tests of controllers and of the agent.

Fake by name: no authentication, admission, schemas or defaulting. Real: resourceVersion (one global counter), uid,
generation, creationTimestamp, finalizers and deletionTimestamp, the status subresource, optimistic concurrency, label
and field selectors on lists and watches, watch resume and 410, JSON and merge patch, delete preconditions, propagation
finalizers. What it returns is shared, as the contract allows; `assert_untouched` finds whoever changed it.
"""

from __future__ import annotations

import asyncio
import copy
import json
import uuid
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from stead.client.contract import Object, ObjectList, Selection, WatchEvent
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError, already_exists, conflict, not_found

Identity = tuple[str, str]
ObjectKey = tuple[str, str, str, str]  # group, plural, namespace, name


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class FakeClient:
    """See the module's prose. `on_create` stands for admission: it may return a changed copy."""

    def __init__(self, *, history: int = 10_000) -> None:
        self.objects: dict[ObjectKey, Object] = {}
        self.version = 100
        self.writes: list[tuple[str, str, str, str]] = []  # verb, plural[/subresource], namespace, name
        self.on_create: dict[str, Callable[[Object], Object]] = {}
        self.fail: Callable[[str, Resource, str], ApiError | OSError | None] | None = None
        self.default_namespace_finalizer = True
        self._history: dict[Identity, list[tuple[int, Object | None, Object | None]]] = {}  # version, old, new
        self._keep = history
        self._compacted = 100
        self._changed: dict[Identity, asyncio.Event] = {}
        self._pristine: list[tuple[Object, str]] = []

    # verbs -------------------------------------------------------------------------------------------------------

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        await self._gate("get", resource, name)
        return self._stored(resource, namespace, name)

    async def list(self, resource: Resource, selection: Selection = Selection()) -> ObjectList:
        await self._gate("list", resource, "")
        items = [o for k, o in self.objects.items() if k[:2] == _identity(resource) and _selected(o, selection)]
        return ObjectList(sorted(items, key=_sort_key), str(self.version))

    async def watch(
        self,
        resource: Resource,
        selection: Selection = Selection(),
        resource_version: str = "",
    ) -> AsyncIterator[WatchEvent]:
        await self._gate("watch", resource, "")
        if not resource_version or resource_version == "0":
            for obj in (await self.list(resource, selection)).items:
                yield WatchEvent("ADDED", obj)
            after = self.version
        else:
            after = int(resource_version)
        while True:
            if after < self._compacted:
                raise ApiError("Expired", f"too old resource version: {after} ({self._compacted})")
            changed = self._changed.setdefault(_identity(resource), asyncio.Event())
            history = self._history.get(_identity(resource), [])
            for version, old, new in history[bisect_right(history, after, key=lambda h: h[0]) :]:
                after = version
                event = _event(old, new, selection, version)
                if event is not None:
                    yield event
            if changed is self._changed.get(_identity(resource)):
                await changed.wait()

    async def create(self, resource: Resource, obj: Object) -> Object:
        await self._gate("create", resource, obj["metadata"].get("name", ""))
        new = copy.deepcopy(obj)
        metadata = new["metadata"]
        if not metadata.get("name"):
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        key = self._key(resource, metadata.get("namespace"), metadata["name"])
        if resource.namespaced:
            space = self.objects.get(("", "namespaces", "", metadata["namespace"]))
            if space is not None and space["metadata"].get("deletionTimestamp"):
                raise ApiError("Forbidden", f"unable to create new content in namespace {metadata['namespace']}")
        if key in self.objects:
            raise already_exists(resource.plural, metadata["name"], resource.group)
        new.setdefault("apiVersion", resource.api_version)
        new.setdefault("kind", resource.kind)
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": metadata.get("creationTimestamp") or now()}
        if resource.has_generation:
            metadata["generation"] = 1
        if resource.status_subresource:
            new.pop("status", None)
        if resource.plural == "namespaces" and self.default_namespace_finalizer:
            new["spec"] = {"finalizers": ["kubernetes"]}
            new["status"] = {"phase": "Active"}
        if resource.kind in self.on_create:
            new = self.on_create[resource.kind](new)
        return await self._commit("create", resource, key, new)

    async def update(self, resource: Resource, obj: Object, subresource: str = "") -> Object:
        metadata = obj["metadata"]
        await self._gate("update", resource, metadata["name"])
        stored = self._stored(resource, metadata.get("namespace"), metadata["name"])
        return await self._replace("update", resource, stored, copy.deepcopy(obj), subresource)

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        patch: Sequence[Object] | Object,
        subresource: str = "",
    ) -> Object:
        await self._gate("patch", resource, name)
        stored = self._stored(resource, namespace, name)
        if isinstance(patch, dict):
            new = merge_patch(copy.deepcopy(stored), patch)
        else:
            new = json_patch(copy.deepcopy(stored), patch)
        return await self._replace("patch", resource, stored, new, subresource)

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str = "",
        propagation: str = "Background",
        grace_seconds: int | None = None,
    ) -> None:
        await self._gate("delete", resource, name)
        stored = self._stored(resource, namespace, name)
        if uid and stored["metadata"]["uid"] != uid:
            raise conflict(resource.plural, name, resource.group)
        finalizers = [f for f in stored["metadata"].get("finalizers", []) if f not in ("orphan", "foregroundDeletion")]
        extra = {"Orphan": ["orphan"], "Foreground": ["foregroundDeletion"]}.get(propagation, [])
        key = self._key(resource, namespace, name)
        if resource.plural == "namespaces" and stored.get("spec", {}).get("finalizers"):
            finalizers = finalizers or []
        elif not finalizers + extra:
            await self._remove("delete", resource, key)
            return
        if stored["metadata"].get("deletionTimestamp") and propagation == "Background":
            return
        new = copy.deepcopy(stored)
        new["metadata"].setdefault("deletionTimestamp", now())
        new["metadata"]["deletionGracePeriodSeconds"] = grace_seconds or 0
        if finalizers + extra:
            new["metadata"]["finalizers"] = finalizers + extra
        if resource.plural == "namespaces":
            new["status"] = {"phase": "Terminating"}
        await self._commit("delete", resource, key, new)

    async def close(self) -> None:
        return None

    # tests' handles ----------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Forget the history: watches from before now get 410."""
        self._history.clear()
        self.version += 1
        self._compacted = self.version

    async def wake(self) -> None:
        """Let watchers look again (after `expire`)."""
        for changed in self._changed.values():
            changed.set()
        self._changed.clear()

    def count_writes(self, *plurals: str) -> int:
        """Writes so far to these kinds (all, without argument)."""
        return sum(1 for w in self.writes if not plurals or w[1].split("/")[0] in plurals)

    def of(self, plural: str) -> list[Object]:
        """All stored objects of a kind."""
        return [o for k, o in sorted(self.objects.items()) if k[1] == plural]

    def assert_untouched(self) -> None:
        """Every object ever handed out is as it was."""
        for obj, text in self._pristine:
            assert json.dumps(obj, sort_keys=True) == text, f"somebody changed {obj['kind']} {obj['metadata']['name']}"

    # inside ------------------------------------------------------------------------------------------------------

    async def _gate(self, verb: str, resource: Resource, name: str) -> None:
        await asyncio.sleep(0)
        error = self.fail(verb, resource, name) if self.fail else None
        if error is not None:
            raise error

    def _key(self, resource: Resource, namespace: str | None, name: str) -> ObjectKey:
        return (*_identity(resource), (namespace or "") if resource.namespaced else "", name)

    def _stored(self, resource: Resource, namespace: str | None, name: str) -> Object:
        found = self.objects.get(self._key(resource, namespace, name))
        if found is None:
            raise not_found(resource.plural, name, resource.group)
        return found

    async def _replace(self, verb: str, resource: Resource, stored: Object, new: Object, subresource: str) -> Object:
        metadata, old_metadata = new["metadata"], stored["metadata"]
        given = metadata.get("resourceVersion")
        if given and given != old_metadata["resourceVersion"]:
            raise conflict(resource.plural, old_metadata["name"], resource.group)
        if subresource == "status":
            new = {**copy.deepcopy(stored), "status": new.get("status", {})}
        elif resource.status_subresource and not subresource:
            new = {k: v for k, v in new.items() if k != "status"}
            if "status" in stored:
                new["status"] = copy.deepcopy(stored["status"])
        elif subresource not in ("", "finalize"):
            raise AssertionError(f"unknown subresource {subresource}")
        metadata = new["metadata"]
        for field in ("uid", "creationTimestamp", "deletionTimestamp", "generation", "resourceVersion"):
            metadata.pop(field, None)
            if field in old_metadata:
                metadata[field] = old_metadata[field]
        if _same(new, stored):
            return stored
        if old_metadata.get("deletionTimestamp"):
            added = set(metadata.get("finalizers") or []) - set(old_metadata.get("finalizers") or [])
            if added:
                raise ApiError("Invalid", f"no new finalizers can be added if the object is being deleted: {added}")
        if resource.has_generation and {k: v for k, v in new.items() if k not in ("metadata", "status")} != {
            k: v for k, v in stored.items() if k not in ("metadata", "status")
        }:
            metadata["generation"] = old_metadata.get("generation", 1) + 1
        key = self._key(resource, metadata.get("namespace"), metadata["name"])
        done = not metadata.get("finalizers") and not new.get("spec", {}).get("finalizers")
        if metadata.get("deletionTimestamp") and done:
            await self._remove(verb, resource, key)
            return new
        return await self._commit(verb + ("/" + subresource if subresource else ""), resource, key, new)

    async def _commit(self, verb: str, resource: Resource, key: ObjectKey, new: Object) -> Object:
        old = self.objects.get(key)
        self.version += 1
        new["metadata"]["resourceVersion"] = str(self.version)
        self.objects[key] = new
        self._pristine.append((new, json.dumps(new, sort_keys=True)))
        subresource = verb.partition("/")[2]
        self.writes.append((verb, key[1] + ("/" + subresource if subresource else ""), key[2], key[3]))
        await self._publish(_identity(resource), old, new)
        return new

    async def _remove(self, verb: str, resource: Resource, key: ObjectKey) -> None:
        old = self.objects.pop(key)
        self.version += 1
        self.writes.append((verb, key[1], key[2], key[3]))
        await self._publish(_identity(resource), old, None)

    async def _publish(self, identity: Identity, old: Object | None, new: Object | None) -> None:
        history = self._history.setdefault(identity, [])
        history.append((self.version, old, new))
        if len(history) > self._keep:
            self._compacted = history.pop(0)[0]
        changed = self._changed.pop(identity, None)  # each write wakes those who waited before it
        if changed is not None:
            changed.set()


def _identity(resource: Resource) -> Identity:
    return resource.group, resource.plural


def _sort_key(obj: Object) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _same(a: Object, b: Object) -> bool:
    return {**a, "metadata": {**a["metadata"], "resourceVersion": ""}} == {
        **b,
        "metadata": {**b["metadata"], "resourceVersion": ""},
    }


def _selected(obj: Object, selection: Selection) -> bool:
    metadata = obj["metadata"]
    if selection.namespace is not None and metadata.get("namespace", "") != selection.namespace:
        return False
    for term in filter(None, selection.labels.split(",")):
        key, equals, value = term.partition("=")
        labels = metadata.get("labels") or {}
        if (equals and labels.get(key) != value.lstrip("=")) or (not equals and key not in labels):
            return False
    for term in filter(None, selection.fields.split(",")):
        path, _, value = term.partition("=")
        found: Any = obj
        for part in path.split("."):
            found = (found or {}).get(part)
        if str(found or "") != value.lstrip("="):
            return False
    return True


def _event(old: Object | None, new: Object | None, selection: Selection, version: int) -> WatchEvent | None:
    was = old is not None and _selected(old, selection)
    matches = new is not None and _selected(new, selection)
    if new is not None and matches:
        return WatchEvent("MODIFIED" if was else "ADDED", new)
    if was and old is not None:
        last = new or old
        return WatchEvent("DELETED", {**last, "metadata": {**last["metadata"], "resourceVersion": str(version)}})
    return None


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = target if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def json_patch(target: Any, patch: Sequence[Object]) -> Any:
    """RFC 6902, the operations add, replace, remove and test."""
    for step in patch:
        parts = [p.replace("~1", "/").replace("~0", "~") for p in step["path"].split("/")[1:]]
        holder = target
        for part in parts[:-1]:
            holder = holder[int(part)] if isinstance(holder, list) else holder.get(part)
            if holder is None:
                raise ApiError("Invalid", f"the server rejected our request due to an error in our request: {step}")
        last: Any = parts[-1]
        if isinstance(holder, list):
            last = len(holder) if last == "-" else int(last)
        operation = step["op"]
        if operation == "test":
            found = holder[last] if isinstance(holder, list) else holder.get(last)
            if found != step["value"]:
                if step["path"] == "/metadata/resourceVersion":
                    raise ApiError("Invalid", "the server rejected our request due to an error in our request")
                raise ApiError("Invalid", f"test failed at {step['path']}")
        elif operation == "remove":
            if not isinstance(holder, list) and last not in holder:
                raise ApiError("Invalid", f"nothing to remove at {step['path']}")
            del holder[last]
        elif operation == "add" and isinstance(holder, list):
            holder.insert(last, copy.deepcopy(step["value"]))
        else:
            holder[last] = copy.deepcopy(step["value"])
    return target

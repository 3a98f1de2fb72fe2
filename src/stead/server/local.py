"""The verbs for one identity in this process: what `client.local.LocalClient` is joined to.

Made by the composition root. Admission, validation and RBAC's escalation rules apply as for a request; authorisation of
each call is left out where the identity is ours and in `system:masters` (rung 1's controllers), else it is asked.
With several planes a list is no older than what any of them had acknowledged; a get is what this plane knows, since a
write that follows from it is refused when it was too old.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from stead.client.contract import Object, ObjectList, Selection, WatchEvent
from stead.kinds.resource import Resource
from stead.kube import patch as patches
from stead.server import mutation
from stead.server.authn import MASTERS, User
from stead.server.authz import Attributes, Authorizer
from stead.server.calls import Call, Options, Outcome, delete_options
from stead.server.reading import ListOptions, parse_selector
from stead.server.request import Query
from stead.server.shapes import Shape
from stead.server.verbs import Verbs
from stead.server.watching import Watch, WatchOptions

#: a watch in process lasts until it is closed; informers resume anyway, seconds
_WATCH_SECONDS = 86400.0


class LocalVerbs:
    """See the module's prose."""

    def __init__(self, verbs: Verbs, user: User, authorizer: Authorizer | None = None, manager: str = "stead") -> None:
        self._verbs = verbs
        self._user = user
        self._authorizer = None if MASTERS in user.groups else authorizer
        self._options = Options(manager=manager, manager_given=True, validation="Ignore")

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """One object, shared."""
        self._check("get", resource, namespace, name)
        return self._verbs.get(resource, namespace, name).obj

    async def list(self, resource: Resource, selection: Selection) -> ObjectList:
        """All that is selected, shared."""
        self._check("list", resource, selection.namespace or "")
        selector = parse_selector(resource, selection.labels, selection.fields)
        await self._verbs.registry.catch_up()
        page = await self._verbs.reader.page(resource, selection.namespace or "", ListOptions(selector=selector))
        registry = self._verbs.registry
        shared = [registry.record(record.key, record.revision, record.value).obj for record in page.records]
        return ObjectList(shared, str(page.revision))

    async def watch(self, resource: Resource, selection: Selection, resource_version: str) -> AsyncIterator[WatchEvent]:
        """Changes with bookmarks, until closed."""
        self._check("watch", resource, selection.namespace or "")
        options = WatchOptions(
            selector=parse_selector(resource, selection.labels, selection.fields),
            revision=int(resource_version) if resource_version else None, bookmarks=True, seconds=_WATCH_SECONDS,
        )  # fmt: skip
        watch = Watch(self._verbs.registry, Shape(resource, resource.version), selection.namespace or "", options)
        try:
            for change in watch.open():
                if change.record is not None:
                    yield WatchEvent(change.type, change.record.obj)
            async for batch in watch.changes():
                for change in batch:
                    if change.record is not None:
                        yield WatchEvent(change.type, change.record.obj)
                    else:
                        yield WatchEvent("BOOKMARK", _bookmark(resource, change.revision))
        finally:
            watch.close()

    async def create(self, resource: Resource, obj: Object) -> Object:
        """Create an object."""
        namespace = (obj.get("metadata") or {}).get("namespace") or ""
        self._check("create", resource, namespace)
        return _result(await self._verbs.create(self._call(resource, namespace, ""), obj))

    async def update(self, resource: Resource, obj: Object, subresource: str) -> Object:
        """Replace an object or a subresource of it."""
        metadata = obj["metadata"]
        namespace, name = metadata.get("namespace") or "", metadata["name"]
        self._check("update", resource, namespace, name, subresource)
        return _result(await self._verbs.update(self._call(resource, namespace, name, subresource), obj))

    async def patch(self, resource: Resource, namespace: str, name: str, patch: Any, subresource: str) -> Object:
        """Patch an object or a subresource of it."""
        self._check("patch", resource, namespace, name, subresource)
        if isinstance(patch, dict):
            version = (patch.get("metadata") or {}).get("resourceVersion") or ""
            change = mutation.Change(type=patches.MERGE_PATCH, operations=patch, resource_version=str(version))
        else:
            change = mutation.Change(type=patches.JSON_PATCH, operations=list(patch))
        return _result(await self._verbs.patch(self._call(resource, namespace, name, subresource), change))

    async def delete(self, resource: Resource, namespace: str, name: str, options: dict[str, Any]) -> None:
        """Delete an object."""
        self._check("delete", resource, namespace, name)
        await self._verbs.delete(self._call(resource, namespace, name), delete_options(options, Query()))

    def _call(self, resource: Resource, namespace: str, name: str, subresource: str = "") -> Call:
        return Call(
            user=self._user, resource=resource, version=resource.version, namespace=namespace, name=name,
            subresource=subresource, options=self._options,
        )  # fmt: skip

    def _check(self, verb: str, resource: Resource, namespace: str, name: str = "", subresource: str = "") -> None:
        if self._authorizer is None:
            return
        plural = f"{resource.plural}/{subresource}" if subresource else resource.plural
        self._authorizer.check(self._user, Attributes(
            verb=verb, group=resource.group, version=resource.version, resource=plural, namespace=namespace, name=name,
        ))  # fmt: skip


def _result(outcome: Outcome) -> Object:
    return outcome.record.obj if outcome.record is not None else outcome.status or {}


def _bookmark(resource: Resource, revision: int) -> Object:
    metadata = {"resourceVersion": str(revision)}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}

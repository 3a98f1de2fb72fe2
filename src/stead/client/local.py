"""The client of our own code in the plane's process: the same verbs as the API's, without the network.

Implements `client.contract.Client`. Knows the server only by the protocol below, which `server.local.LocalVerbs`
fulfils; the composition root joins the two. Everything runs on the one event loop; objects returned are shared, never
mutate them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from stead.client.contract import Object, ObjectList, Selection, WatchEvent
from stead.kinds.resource import Resource


class LocalVerbs(Protocol):
    """The verbs for one identity, in process."""

    async def get(self, resource: Resource, namespace: str, name: str) -> Object: ...

    async def list(self, resource: Resource, selection: Selection) -> ObjectList: ...

    def watch(self, resource: Resource, selection: Selection, resource_version: str) -> AsyncIterator[WatchEvent]: ...

    async def create(self, resource: Resource, obj: Object) -> Object: ...

    async def update(self, resource: Resource, obj: Object, subresource: str) -> Object: ...

    async def patch(self, resource: Resource, namespace: str, name: str, patch: Any, subresource: str) -> Object: ...

    async def delete(self, resource: Resource, namespace: str, name: str, options: dict[str, Any]) -> None: ...


class LocalClient:
    """`client.contract.Client` over verbs in the same process."""

    def __init__(self, verbs: LocalVerbs) -> None:
        self._verbs = verbs

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        """One object. Raises ApiError("NotFound")."""
        return await self._verbs.get(resource, namespace or "", name)

    async def list(self, resource: Resource, selection: Selection = Selection()) -> ObjectList:
        """All that is selected, and the version to watch from."""
        return await self._verbs.list(resource, selection)

    def watch(
        self,
        resource: Resource,
        selection: Selection = Selection(),
        resource_version: str = "",
    ) -> AsyncIterator[WatchEvent]:
        """Changes after a version, until the iteration is closed. Raises ApiError("Expired") when too old."""
        return self._verbs.watch(resource, selection, resource_version)

    async def create(self, resource: Resource, obj: Object) -> Object:
        """Create; the namespace is that of the object's metadata."""
        return await self._verbs.create(resource, obj)

    async def update(self, resource: Resource, obj: Object, subresource: str = "") -> Object:
        """Replace, or replace a subresource. Raises ApiError("Conflict") on a lost race."""
        return await self._verbs.update(resource, obj, subresource)

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        patch: Sequence[Object] | Object,
        subresource: str = "",
    ) -> Object:
        """A list is a JSON patch, a dictionary a merge patch."""
        return await self._verbs.patch(resource, namespace or "", name, patch, subresource)

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
        """Delete. Raises ApiError("NotFound")."""
        options: dict[str, Any] = {"propagationPolicy": propagation}
        if uid:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        await self._verbs.delete(resource, namespace or "", name, options)

    async def close(self) -> None:
        """Nothing to close."""

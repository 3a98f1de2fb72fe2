"""How our own code reaches the API: one asynchronous contract, in-process (`local`) or over HTTPS (`remote`).

Objects are plain JSON dictionaries. What a client returns may be shared with others: **never mutate it**; build a new
object or send a patch. Failures are `stead.kube.errors.ApiError`. Controllers and the agent know only this contract,
never which rung they run on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import msgspec

from stead.kinds.resource import Resource

Object = dict[str, Any]


class ObjectList(msgspec.Struct, frozen=True):
    """Items of a list and the resourceVersion to watch from."""

    items: list[Object]
    resource_version: str


class WatchEvent(msgspec.Struct, frozen=True):
    """`type` is ADDED, MODIFIED, DELETED or BOOKMARK. A 410 is raised as ApiError("Expired"), never delivered."""

    type: str
    object: Object


class Selection(msgspec.Struct, frozen=True):
    """What to list or watch. `namespace` None = all namespaces; selectors in the API's own string syntax."""

    namespace: str | None = None
    labels: str = ""
    fields: str = ""


class Client(Protocol):
    """All verbs of the Kubernetes API that our code uses. `namespace` is None for cluster-scoped kinds."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object: ...

    async def list(self, resource: Resource, selection: Selection = Selection()) -> ObjectList: ...

    def watch(
        self, resource: Resource, selection: Selection = Selection(), resource_version: str = ""
    ) -> AsyncIterator[WatchEvent]: ...

    async def create(self, resource: Resource, obj: Object) -> Object: ...

    async def update(self, resource: Resource, obj: Object, subresource: str = "") -> Object: ...

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        patch: Sequence[Object] | Object,
        subresource: str = "",
    ) -> Object:
        """A list is sent as JSON patch (RFC 6902), a dictionary as JSON merge patch (RFC 7386)."""
        ...

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
        """Delete; `uid` is sent as a precondition when given. NotFound is raised."""
        ...

    async def close(self) -> None: ...

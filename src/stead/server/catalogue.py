"""The kinds that this server serves, each with its structural schema, found by URL or by name.

Built once from `kinds.register` by the composition root (tests add kinds of their own). Immutable; asked by every
module of the server.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import msgspec

from stead.kinds import register
from stead.kinds.resource import Resource
from stead.kube import schema

#: kinds that are created to be answered and never stored
VIRTUAL_GROUPS = frozenset({"authorization.k8s.io", "authentication.k8s.io", "upload.cdi.kubevirt.io"})

SUBRESOURCE_GROUP = "subresources.kubevirt.io"
SUBRESOURCE_VERSIONS = ("v1", "v1alpha3")
#: our own questions about machines, beside KubeVirt's
OWN_SUBRESOURCE_GROUP = "subresources.stead.io"
SUBRESOURCE_GROUPS = frozenset((SUBRESOURCE_GROUP, OWN_SUBRESOURCE_GROUP))


class Served(msgspec.Struct, frozen=True, dict=True):
    """One served kind."""

    resource: Resource

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The structural schema, root fields included. A `struct` that is a dict is a schema already (tests)."""
        struct = self.resource.struct
        return schema.object_schema(struct) if isinstance(struct, dict) else schema.schema_from_struct(struct)

    @property
    def is_virtual(self) -> bool:
        """Whether the kind is never stored."""
        return self.resource.group in VIRTUAL_GROUPS


def _as_offered(resource: Resource) -> Resource:
    """The kind as clients may use it: definitions of our own kinds can be read, nobody may change them."""
    if resource is not register.CUSTOM_RESOURCE_DEFINITION:
        return resource
    return msgspec.structs.replace(resource, verbs=("get", "list", "watch"), status_subresource=False)


class Catalogue:
    """See the module's prose."""

    def __init__(self, resources: Iterable[Resource] = register.ALL) -> None:
        self.all: tuple[Served, ...] = tuple(Served(_as_offered(resource)) for resource in resources)
        self._by_path = {
            (served.resource.group, version, served.resource.plural): served
            for served in self.all
            for version in served.resource.versions or (served.resource.version,)
            if served.resource is not register.TOKEN_REQUEST
        }
        self._by_kind = {(served.resource.group, served.resource.kind): served for served in self.all}
        self._versions: dict[str, list[str]] = {}
        for served in self.all:
            versions = self._versions.setdefault(served.resource.group, [])
            versions.extend(v for v in served.resource.versions or (served.resource.version,) if v not in versions)

    def find(self, group: str, version: str, plural: str) -> Served | None:
        """What a URL names."""
        return self._by_path.get((group, version, plural))

    def served(self, resource: Resource) -> Served:
        """The served kind of a resource. Raises KeyError."""
        return self._by_kind[(resource.group, resource.kind)]

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Groups ("" is the core group) and their versions, preferred first; subresource groups included."""
        found = {group: tuple(versions) for group, versions in self._versions.items()}
        found[SUBRESOURCE_GROUP] = SUBRESOURCE_VERSIONS
        found[OWN_SUBRESOURCE_GROUP] = ("v1alpha1",)
        return found

    def in_version(self, group: str, version: str) -> list[Served]:
        """Kinds of a group-version, in the order of their plurals."""
        found = [served for (g, v, _), served in self._by_path.items() if (g, v) == (group, version)]
        return sorted(found, key=lambda served: served.resource.plural)

    def stored_namespaced(self) -> list[Resource]:
        """Kinds that are stored in namespaces: what has to go when a namespace does."""
        return [s.resource for s in self.all if s.resource.namespaced and not s.is_virtual]

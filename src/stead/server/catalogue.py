"""The kinds that this server serves, each with its structural schema, found by URL or by name.

Built from `kinds.register` by the composition root (tests add kinds of their own); `definitions` adds the kinds that
users define and takes them away. Asked by every module of the server, on the event loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import msgspec

from stead.kinds import register
from stead.kinds.foreign import version_order
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
        if self.resource.edition:
            found: dict[str, Any] = struct
            return found
        return schema.object_schema(struct) if isinstance(struct, dict) else schema.schema_from_struct(struct)

    @property
    def is_virtual(self) -> bool:
        """Whether the kind is never stored."""
        return self.resource.group in VIRTUAL_GROUPS or self.resource is register.JOIN


class Catalogue:
    """See the module's prose."""

    def __init__(self, resources: Iterable[Resource] = register.ALL) -> None:
        self._own: tuple[Served, ...] = tuple(Served(resource) for resource in resources)
        self._by_path = {
            (served.resource.group, version, served.resource.plural): served
            for served in self._own
            for version in served.resource.versions or (served.resource.version,)
            if served.resource is not register.TOKEN_REQUEST
        }
        self._by_kind = {(served.resource.group, served.resource.kind): served for served in self._own}
        self._versions: dict[str, list[str]] = {}
        for served in self._own:
            versions = self._versions.setdefault(served.resource.group, [])
            versions.extend(v for v in served.resource.versions or (served.resource.version,) if v not in versions)
        #: kinds that definitions added, by group, version and plural
        self._foreign: dict[tuple[str, str, str], Served] = {}
        #: changes whenever a foreign kind does: documents made from the catalogue are made anew then
        self.revision = 0

    @property
    def all(self) -> tuple[Served, ...]:
        """Every served kind; a foreign one once for each of its versions."""
        return (*self._own, *self._foreign.values())

    def set_foreign(self, resources: Iterable[Resource]) -> list[Resource]:
        """Serve these kinds beside our own; returns those that went or changed."""
        known, self._foreign = self._foreign, {}
        for resource in resources:
            at = (resource.group, resource.versions[0], resource.plural)
            same = known.get(at)
            self._foreign[at] = same if same is not None and same.resource == resource else Served(resource)
        if known == self._foreign:
            return []
        self.revision += 1
        return [
            served.resource
            for at, served in known.items()
            if at not in self._foreign or self._foreign[at].resource.edition != served.resource.edition
        ]

    def find(self, group: str, version: str, plural: str) -> Served | None:
        """What a URL names."""
        at = (group, version, plural)
        return self._by_path.get(at) or self._foreign.get(at)

    def served(self, resource: Resource) -> Served:
        """The served kind of a resource, in its newest state. Raises KeyError."""
        if not resource.edition:
            return self._by_kind[(resource.group, resource.kind)]
        return self._foreign.get((resource.group, resource.versions[0], resource.plural)) or Served(resource)

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Groups ("" is the core group) and their versions, preferred first; subresource groups included."""
        found = {group: tuple(versions) for group, versions in self._versions.items()}
        found[SUBRESOURCE_GROUP] = SUBRESOURCE_VERSIONS
        found[OWN_SUBRESOURCE_GROUP] = ("v1alpha1",)
        foreign: dict[str, set[str]] = {}
        for group, version, _ in self._foreign:
            foreign.setdefault(group, set()).add(version)
        for group, versions in sorted(foreign.items()):
            found[group] = tuple(sorted({*found.get(group, ()), *versions}, key=version_order))
        return found

    def in_version(self, group: str, version: str) -> list[Served]:
        """Kinds of a group-version, in the order of their plurals."""
        everything = [*self._by_path.items(), *self._foreign.items()]
        found = [served for (g, v, _), served in everything if (g, v) == (group, version)]
        return sorted(found, key=lambda served: served.resource.plural)

"""What a kind is: its names, scope, schema source and printed columns. Pure data; the register holds one per kind.

Every other room asks a `Resource` rather than knowing a kind: the server derives paths, schema, OpenAPI and tables from
it, clients derive URLs. The `struct` is the typed definition (msgspec Struct with docstrings), the only source of the
structural schema. Field meanings follow CustomResourceDefinition (apiextensions.k8s.io/v1).
"""

from __future__ import annotations

from typing import Any

import msgspec


class Column(msgspec.Struct, frozen=True):
    """One printed column. `priority` 1 = only with `-o wide`; `type` is string|integer|boolean|date|number."""

    name: str
    type: str
    path: str
    priority: int = 0
    format: str = ""
    description: str = ""


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """One served kind. `version` is the storage version; `versions` all that are served, preferred first."""

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    struct: Any
    namespaced: bool = True
    versions: tuple[str, ...] = ()
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    verbs: tuple[str, ...] = (
        "create", "delete", "deletecollection", "get", "list", "patch", "update", "watch",
    )  # fmt: skip
    #: has /status (a write to the main resource ignores `status` and the other way round)
    status_subresource: bool = False
    #: JSON paths of /scale, if it has one
    scale: tuple[str, str, str] | None = None
    #: a built-in kind of Kubernetes (strategic merge patch works, no CRD stands for it)
    builtin: bool = False
    #: counts metadata.generation
    has_generation: bool = True
    #: labels that field selectors may use beyond metadata.name/namespace, as JSON paths ("status.phase")
    field_selectors: tuple[str, ...] = ()
    #: a kind that a CustomResourceDefinition added: which state of it (uid and generation); "" for our own kinds.
    #: Its `struct` is the structural schema of the one version in `versions`
    edition: str = ""

    @property
    def api_version(self) -> str:
        """`group/version`, or `version` for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of the collection, an object or its subresource. `namespace` None lists all namespaces."""
        base = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        if self.namespaced and namespace:
            base += f"/namespaces/{namespace}"
        base += f"/{self.plural}"
        if name:
            base += f"/{name}"
        if subresource:
            base += f"/{subresource}"
        return base

"""Kinds that users and GitOps tools add: from a CustomResourceDefinition to the `Resource` of each version.

The server serves them, garbage collection and the end of a namespace look at them. Pure. A definition of a group of our
own describes a built-in kind and makes none here. Source: CustomResourceDefinition (apiextensions.k8s.io/v1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from stead.kinds import register
from stead.kinds.resource import Column, Resource
from stead.kube.schema import object_schema

Object = dict[str, Any]

#: what holds a definition until its instances are gone
CLEANUP = "customresourcecleanup.apiextensions.k8s.io"

_VERSION = re.compile(r"v(\d+)(?:(alpha|beta)(\d+))?")
_STAGES = {"alpha": 0, "beta": 1, None: 2}
_ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


def is_own_group(group: str) -> bool:
    """Whether the group is one of Stead's or of the API that it serves: nobody may add kinds to it."""
    return group in (*filter(None, register.groups()), "subresources.kubevirt.io", "subresources.stead.io")


def condition_of(definition: Object, kind: str) -> str:
    """Status of a condition of a definition, "" if it has none."""
    for condition in (definition.get("status") or {}).get("conditions") or ():
        if condition.get("type") == kind:
            return str(condition.get("status", ""))
    return ""


def is_served(definition: Object) -> bool:
    """Whether a definition makes kinds: a foreign one whose names were accepted once."""
    return not is_own_group(definition["spec"]["group"]) and condition_of(definition, "Established") == "True"


def version_order(version: str) -> tuple[int, int, int, str]:
    """Sort key that puts the preferred version first: stable before beta before alpha, newer before older."""
    match = _VERSION.fullmatch(version)
    if not match:
        return (1, 0, 0, version)
    return (0, -_STAGES[match[2]], -int(match[1]) * 10_000 - int(match[3] or 0), version)


def storage_version(definition: Object) -> str:
    """The version under which instances are stored."""
    return next((str(v.get("name") or "") for v in definition["spec"]["versions"] if v.get("storage")), "")


def resources_of(definition: Object) -> tuple[Resource, ...]:
    """One resource for each version that is served, preferred first. All of them store the storage version."""
    served = [version for version in definition["spec"]["versions"] if version.get("served")]
    return tuple(_resource(definition, v) for v in sorted(served, key=lambda v: version_order(v["name"])))


def stored_resource(definition: Object) -> Resource:
    """The resource by which our own controllers see all instances, whichever versions are served."""
    version = next(v for v in definition["spec"]["versions"] if v.get("storage"))
    return _resource(definition, version)


def stored_resources(definitions: Iterable[Object]) -> tuple[Resource, ...]:
    """`stored_resource` of every definition that makes kinds."""
    return tuple(stored_resource(definition) for definition in definitions if is_served(definition))


def _resource(definition: Object, version: Object) -> Resource:
    spec, metadata = definition["spec"], definition["metadata"]
    accepted = (definition.get("status") or {}).get("acceptedNames") or {}
    names = accepted if accepted.get("kind") else spec["names"]
    subresources = version.get("subresources") or {}
    scale = subresources.get("scale")
    terminating = bool(metadata.get("deletionTimestamp"))
    return Resource(
        group=spec["group"],
        version=storage_version(definition),
        versions=(version["name"],),
        kind=names["kind"],
        plural=names["plural"],
        singular=names.get("singular") or names["kind"].lower(),
        struct=object_schema((version.get("schema") or {}).get("openAPIV3Schema") or {}),
        namespaced=spec["scope"] == "Namespaced",
        short_names=tuple(names.get("shortNames") or ()),
        categories=tuple(names.get("categories") or ()),
        columns=tuple(_column(column) for column in version.get("additionalPrinterColumns") or ()),
        verbs=_ALL_VERBS[1:] if terminating else _ALL_VERBS,
        status_subresource="status" in subresources,
        scale=_scale_paths(scale) if scale else None,
        field_selectors=tuple(f["jsonPath"].lstrip(".") for f in version.get("selectableFields") or ()),
        edition=f"{metadata.get('uid', '')}/{metadata.get('generation', 0)}",
    )


def _column(column: Object) -> Column:
    return Column(
        column["name"], column["type"], column["jsonPath"], int(column.get("priority") or 0),
        column.get("format") or "", column.get("description") or "",
    )  # fmt: skip


def _scale_paths(scale: Object) -> tuple[str, str, str]:
    return scale["specReplicasPath"], scale["statusReplicasPath"], scale.get("labelSelectorPath") or ""

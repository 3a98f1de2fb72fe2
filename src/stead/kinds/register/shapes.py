"""Shapes that kinds have in common, and columns that many show. Used by the other modules of this package only."""

from __future__ import annotations

from typing import Any

from stead.kinds.columns import BUILTIN_COLUMNS
from stead.kinds.resource import Column, Resource

READY = Column("Ready", "string", ".status.conditions[?(@.type=='Ready')].status")
CREATE_ONLY = ("create",)


def kubevirt_kind(kind: str, plural: str, struct: Any, **rest: Any) -> Resource:
    """A kind of kubevirt.io: served as v1 and, as KubeVirt does, as v1alpha3."""
    return Resource(
        group="kubevirt.io",
        version="v1",
        versions=("v1", "v1alpha3"),
        kind=kind,
        plural=plural,
        singular=kind.lower(),
        struct=struct,
        categories=("all",),
        **rest,
    )


def custom_kind(group: str, version: str, kind: str, plural: str, struct: Any, **rest: Any) -> Resource:
    """A custom kind with one served version."""
    return Resource(
        group=group,
        version=version,
        versions=(version,),
        kind=kind,
        plural=plural,
        singular=kind.lower(),
        struct=struct,
        **rest,
    )


def builtin_kind(group: str, kind: str, plural: str, struct: Any, **rest: Any) -> Resource:
    """A kind of Kubernetes itself, version v1. These count no generation unless said."""
    rest.setdefault("has_generation", False)
    rest.setdefault("columns", BUILTIN_COLUMNS.get((group, kind), ()))
    return custom_kind(group, "v1", kind, plural, struct, builtin=True, **rest)


def versioned_kind(resource: tuple[str, str, str], struct: Any, versions: tuple[str, ...], **rest: Any) -> Resource:
    """A kind of KubeVirt's (group, kind, plural) with status and several served versions, the stored one first."""
    group, kind, plural = resource
    return Resource(
        group=group,
        version=versions[0],
        versions=versions,
        kind=kind,
        plural=plural,
        singular=kind.lower(),
        struct=struct,
        categories=("all",),
        status_subresource=True,
        **rest,
    )

"""The CustomResourceDefinitions that stand for our own kinds: read-only on rungs 1 and 2, installed on rung 3.

The server serves them so that `kubectl get crd`, `kubectl wait --for=condition=Established` and GitOps tools find what
they look for. Derived from the register, never written by hand. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stead.kinds.register import ALL
from stead.kinds.resource import Column, Resource

#: makes a structural schema from a Struct (`stead.kube.schema.schema_from_struct`)
SchemaMaker = Callable[[Any], dict[str, Any]]

_DEPRECATED = {"v1alpha3": "kubevirt.io/v1alpha3 is now deprecated and will be removed in a future release."}


def custom_resource_definitions(schema_from_struct: SchemaMaker) -> list[dict[str, Any]]:
    """One definition for each custom kind that is stored, by name; uid and times are the server's to add."""
    stored = (r for r in ALL if not r.builtin and "list" in r.verbs)
    return sorted(
        (_definition(r, schema_from_struct(r.struct)) for r in stored), key=lambda d: str(d["metadata"]["name"])
    )


def _definition(resource: Resource, schema: dict[str, Any]) -> dict[str, Any]:
    names: dict[str, Any] = {
        "plural": resource.plural,
        "singular": resource.singular,
        "kind": resource.kind,
        "listKind": f"{resource.kind}List",
    }
    if resource.short_names:
        names["shortNames"] = list(resource.short_names)
    if resource.categories:
        names["categories"] = list(resource.categories)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{resource.plural}.{resource.group}",
            "labels": {"app.kubernetes.io/managed-by": "stead"},
        },
        "spec": {
            "group": resource.group,
            "names": names,
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "conversion": {"strategy": "None"},
            "versions": [_version(resource, name, _crd_schema(schema)) for name in resource.versions],
        },
        "status": {
            "acceptedNames": names,
            "storedVersions": [resource.version],
            "conditions": [
                _condition("NamesAccepted", "NoConflicts", "no conflicts found"),
                _condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
            ],
        },
    }


def _version(resource: Resource, name: str, schema: dict[str, Any]) -> dict[str, Any]:
    version: dict[str, Any] = {"name": name, "served": True, "storage": name == resource.version}
    if name in _DEPRECATED:
        version |= {"deprecated": True, "deprecationWarning": _DEPRECATED[name]}
    version["schema"] = {"openAPIV3Schema": schema}
    version["subresources"] = {"status": {}} if resource.status_subresource else {}
    if resource.columns:
        version["additionalPrinterColumns"] = [_column(column) for column in resource.columns]
    return version


def _crd_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as a definition carries it: the API server owns metadata, so only its type may be named."""
    return {**schema, "properties": {**schema.get("properties", {}), "metadata": {"type": "object"}}}


def _column(column: Column) -> dict[str, Any]:
    printed: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.format:
        printed["format"] = column.format
    if column.priority:
        printed["priority"] = column.priority
    return printed


def _condition(kind: str, reason: str, message: str) -> dict[str, str]:
    return {"type": kind, "status": "True", "reason": reason, "message": message}

"""The sizes and operating-system defaults that Stead ships: 65 cluster instancetypes and 57 cluster preferences.

Installed by `stead up` when the KubeVirt object asks for them (the default). The data lies in `data/*.json`, one
object a line; names, specs and labels are those of the common-instancetypes project, so that manifests that name them
work here. Pure; every call returns fresh objects.
"""

from __future__ import annotations

import importlib.resources
from typing import Any

import msgspec

from stead.kinds.register import CLUSTER_INSTANCETYPE, CLUSTER_PREFERENCE
from stead.kinds.resource import Resource


class _Entry(msgspec.Struct):
    """One line of a data file."""

    name: str
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: dict[str, Any]


def cluster_instancetypes() -> list[dict[str, Any]]:
    """All shipped VirtualMachineClusterInstancetypes, by name."""
    return _objects(CLUSTER_INSTANCETYPE, "instancetypes.json")


def cluster_preferences() -> list[dict[str, Any]]:
    """All shipped VirtualMachineClusterPreferences, by name."""
    return _objects(CLUSTER_PREFERENCE, "preferences.json")


def _objects(resource: Resource, file: str) -> list[dict[str, Any]]:
    data = importlib.resources.files("stead.kinds").joinpath("data", file).read_bytes()
    return [
        {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": entry.name, "labels": entry.labels, "annotations": entry.annotations},
            "spec": entry.spec,
        }
        for entry in msgspec.json.decode(data, type=list[_Entry])
    ]

"""The shipped instancetypes and preferences."""

from __future__ import annotations

from typing import Any

import pytest

from stead.kinds import catalogue, register
from stead.kinds.apply_instancetype import apply, requirements_error
from stead.kube import schema

INSTANCETYPES = catalogue.cluster_instancetypes()
PREFERENCES = catalogue.cluster_preferences()


def named(objects: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(o for o in objects if o["metadata"]["name"] == name)


def test_all_are_there_under_names_of_their_own() -> None:
    assert len({o["metadata"]["name"] for o in INSTANCETYPES}) == len(INSTANCETYPES) == 65
    assert len({o["metadata"]["name"] for o in PREFERENCES}) == len(PREFERENCES) == 57


def test_u1_medium_is_one_cpu_and_four_gibibytes() -> None:
    medium = named(INSTANCETYPES, "u1.medium")
    assert medium["apiVersion"] == "instancetype.kubevirt.io/v1beta1"
    assert medium["kind"] == "VirtualMachineClusterInstancetype"
    assert medium["spec"] == {"cpu": {"guest": 1}, "memory": {"guest": "4Gi"}}
    labels = medium["metadata"]["labels"]
    assert labels["instancetype.kubevirt.io/class"] == "general.purpose"
    assert labels["instancetype.kubevirt.io/vendor"] == "kubevirt.io"
    assert medium["metadata"]["annotations"]["instancetype.kubevirt.io/displayName"] == "General Purpose"


def test_annotations_keep_the_dots_in_their_keys() -> None:
    spec = named(INSTANCETYPES, "n1.medium")["spec"]
    assert spec["annotations"] == {
        "cpu-load-balancing.crio.io": "disable",
        "cpu-quota.crio.io": "disable",
        "irq-load-balancing.crio.io": "disable",
    }
    assert spec["memory"] == {"guest": "4Gi", "hugepages": {"pageSize": "1Gi"}}


def test_ubuntu_prefers_virtio() -> None:
    assert named(PREFERENCES, "ubuntu")["spec"] == {
        "annotations": {"vm.kubevirt.io/os": "linux"},
        "devices": {"preferredDiskBus": "virtio", "preferredInterfaceModel": "virtio", "preferredRng": {}},
        "requirements": {"cpu": {"guest": 1}, "memory": {"guest": "2Gi"}},
    }


def test_windows_brings_its_enlightenments() -> None:
    spec = named(PREFERENCES, "windows.11.virtio")["spec"]
    assert spec["features"]["preferredHyperv"]["spinlocks"] == {"spinlocks": 8191}
    assert spec["firmware"]["preferredEfi"] == {"persistent": True, "secureBoot": True}
    assert spec["clock"]["preferredTimer"]["hpet"] == {"present": False}


@pytest.mark.parametrize("obj", INSTANCETYPES + PREFERENCES, ids=lambda o: o["metadata"]["name"])
def test_every_object_fits_its_kind(obj: dict[str, Any]) -> None:
    made = schema.schema_from_struct(register.resource_for(obj["kind"], "instancetype.kubevirt.io").struct)
    kept, unknown = schema.prune(made, obj)
    assert unknown == []
    assert schema.validate(made, kept) == []


def test_any_size_applies_with_a_common_preference() -> None:
    preference = named(PREFERENCES, "debian")["spec"]
    for instancetype in INSTANCETYPES:
        spec, conflicts = apply({"domain": {"devices": {}}}, instancetype["spec"], preference)
        assert conflicts == []
        cpu = spec["domain"]["cpu"]
        assert cpu["sockets"] * cpu["cores"] * cpu["threads"] == instancetype["spec"]["cpu"]["guest"]


def test_windows_11_does_not_fit_the_smallest_size() -> None:
    small, windows = named(INSTANCETYPES, "u1.nano")["spec"], named(PREFERENCES, "windows.11")["spec"]
    unmet = requirements_error({"domain": {}}, small, windows)
    assert unmet
    assert unmet.fields == ["spec.instancetype"]
    assert unmet.message == (
        "insufficient CPU resources of 1 vCPU provided by instance type, preference requires 2 vCPU"
    )


def test_callers_cannot_spoil_the_catalogue() -> None:
    catalogue.cluster_instancetypes()[0]["spec"].clear()
    assert catalogue.cluster_instancetypes()[0]["spec"]

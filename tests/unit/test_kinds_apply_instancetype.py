"""Instancetypes decide, preferences fill gaps, requirements refuse."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from stead.kinds.apply_instancetype import (
    Conflict,
    apply,
    apply_annotations,
    apply_to_templates,
    complete_devices,
    conflict_message,
    requirements_error,
    spread_error,
    topology,
)

Object = dict[str, Any]
SMALL: Object = {"cpu": {"guest": 4}, "memory": {"guest": "4Gi"}}
GPU: Object = {
    "annotations": {"it.example/size": "medium"},
    "cpu": {"guest": 2},
    "ioThreadsPolicy": "shared",
    "memory": {"guest": "2Gi"},
    "nodeSelector": {"pool": "blue"},
    "schedulerName": "alt-sched",
}
STORK: Object = {
    "devices": {"preferredInputBus": "usb", "preferredInputType": "tablet", "preferredTPM": {}},
    "features": {"preferredSmm": {}},
    "firmware": {"preferredEfi": {"secureBoot": True}},
    "machine": {"preferredMachineType": "q35"},
    "preferredSubdomain": "marsh",
    "preferredTerminationGracePeriodSeconds": 75,
}


def machine(**domain: Any) -> Object:
    return {"domain": {"devices": {}, **domain}}


def filled(spec: Object, preference: Object) -> Object:
    before = copy.deepcopy((spec, preference))
    result, conflicts = apply(spec, None, preference)
    assert conflicts == []
    assert (spec, preference) == before
    return result


def test_an_instancetype_gives_cpus_and_memory() -> None:
    spec, conflicts = apply(machine(), SMALL, None)
    assert conflicts == []
    assert spec["domain"]["cpu"] == {"sockets": 4, "cores": 1, "threads": 1}
    assert spec["domain"]["memory"] == {"guest": "4Gi"}


def test_every_conflict_is_named_in_kubevirts_order() -> None:
    template = {
        "domain": {
            "cpu": {"cores": 2, "model": "Nehalem", "threads": 2},
            "devices": {},
            "ioThreadsPolicy": "auto",
            "memory": {"guest": "256Mi"},
            "resources": {"limits": {"memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}},
        },
        "nodeSelector": {"pool": "red"},
        "schedulerName": "s",
    }
    spec, conflicts = apply(template, GPU, None)
    assert conflicts == [
        "spec.template.spec.nodeSelector",
        "spec.template.spec.schedulerName",
        "spec.template.spec.domain.resources.requests.cpu",
        "spec.template.spec.domain.cpu.cores",
        "spec.template.spec.domain.cpu.threads",
        "spec.template.spec.domain.memory.guest",
        "spec.template.spec.domain.ioThreadsPolicy",
    ]
    assert spec == template


def test_a_conflict_says_what_kubevirt_says() -> None:
    _, conflicts = apply(machine(cpu={"sockets": 2}), SMALL, None)
    assert isinstance(conflicts[0], Conflict)
    assert conflicts[0].message == (
        "VM field(s) spec.template.spec.domain.cpu.sockets conflicts with selected instance type"
    )
    assert conflict_message(["a", "b"]) == "VM field(s) a, b conflicts with selected instance type"


def test_the_users_cpu_model_stays_when_the_instancetype_has_none() -> None:
    spec, conflicts = apply(machine(cpu={"model": "Nehalem"}), SMALL, None)
    assert conflicts == []
    assert spec["domain"]["cpu"]["model"] == "Nehalem"
    _, conflicts = apply(machine(cpu={"model": "x"}), {**SMALL, "cpu": {"guest": 1, "model": "y"}}, None)
    assert conflicts == ["spec.template.spec.domain.cpu.model"]


@pytest.mark.parametrize(
    ("preferred", "expected"),
    [
        ({}, (8, 1, 1)),
        ({"preferredCPUTopology": "any"}, (8, 1, 1)),
        ({"preferredCPUTopology": "preferSockets"}, (8, 1, 1)),
        ({"preferredCPUTopology": "cores"}, (1, 8, 1)),
        ({"preferredCPUTopology": "threads"}, (1, 1, 8)),
        ({"preferredCPUTopology": "spread"}, (4, 2, 1)),
        ({"preferredCPUTopology": "spread", "spreadOptions": {"ratio": 4}}, (2, 4, 1)),
        ({"preferredCPUTopology": "spread", "spreadOptions": {"across": "CoresThreads"}}, (1, 4, 2)),
        ({"preferredCPUTopology": "spread", "spreadOptions": {"across": "SocketsCoresThreads"}}, (2, 2, 2)),
    ],
)
def test_the_preference_decides_the_topology(preferred: Object, expected: tuple[int, int, int]) -> None:
    shape = topology(8, {"cpu": preferred})
    assert (shape["sockets"], shape["cores"], shape["threads"]) == expected
    assert topology(1, {"cpu": preferred}) == {"sockets": 1, "cores": 1, "threads": 1}


def test_cpus_that_cannot_be_spread_are_refused_with_the_numbers() -> None:
    preference = {"cpu": {"preferredCPUTopology": "spread", "spreadOptions": {"ratio": 2}}}
    odd = {"cpu": {"guest": 3}, "memory": {"guest": "1Gi"}}
    _, conflicts = apply(machine(), odd, preference)
    assert conflicts == ["instancetype.spec.cpu.guest"]
    assert isinstance(conflicts[0], Conflict)
    assert conflicts[0].message == spread_error(odd, preference)
    assert conflicts[0].message.startswith("3 vCPUs provided by the instance type are not divisible by the ")
    assert spread_error(SMALL, preference) is None


def test_overcommit_lowers_the_request_below_the_guests_memory() -> None:
    overcommitted = {"cpu": {"guest": 1}, "memory": {"guest": "4Gi", "overcommitPercent": 50}}
    spec, _ = apply(machine(), overcommitted, None)
    assert spec["domain"]["memory"] == {"guest": "4Gi"}
    assert spec["domain"]["resources"] == {"requests": {"memory": "2Gi"}}


def test_the_rest_of_an_instancetype_arrives_whole() -> None:
    rich = {
        "cpu": {"guest": 2, "dedicatedCPUPlacement": True, "maxSockets": 8, "numa": {"guestMappingPassthrough": {}}},
        "memory": {"guest": "2Gi", "maxGuest": "8Gi", "hugepages": {"pageSize": "2Mi"}},
        "gpus": [{"name": "g", "deviceName": "d"}],
        "launchSecurity": {"sev": {}},
    }
    spec, conflicts = apply(machine(), rich, None)
    assert conflicts == []
    assert spec["domain"]["cpu"]["dedicatedCpuPlacement"] is True
    assert spec["domain"]["cpu"]["maxSockets"] == 8
    assert spec["domain"]["memory"] == {"guest": "2Gi", "maxGuest": "8Gi", "hugepages": {"pageSize": "2Mi"}}
    assert spec["domain"]["devices"]["gpus"] == rich["gpus"]
    assert spec["domain"]["launchSecurity"] == {"sev": {}}


def test_both_together_as_recorded_from_kubevirt() -> None:
    template = {
        "domain": {"devices": {"disks": [{"disk": {}, "name": "root"}]}},
        "volumes": [{"containerDisk": {"image": "r/x:1"}, "name": "root"}],
    }
    spec, conflicts = apply(complete_devices(template, STORK), GPU, STORK)
    assert conflicts == []
    assert spec["domain"] == {
        "cpu": {"cores": 1, "sockets": 2, "threads": 1},
        "devices": {
            "disks": [{"disk": {}, "name": "root"}],
            "interfaces": [{"bridge": {}, "name": "default"}],
            "tpm": {},
        },
        "features": {"smm": {}},
        "firmware": {"bootloader": {"efi": {"secureBoot": True}}},
        "ioThreadsPolicy": "shared",
        "machine": {"type": "q35"},
        "memory": {"guest": "2Gi"},
    }
    assert spec["networks"] == [{"name": "default", "pod": {}}]
    assert (spec["nodeSelector"], spec["schedulerName"]) == ({"pool": "blue"}, "alt-sched")
    assert (spec["subdomain"], spec["terminationGracePeriodSeconds"]) == ("marsh", 75)


def test_a_preference_never_overrides_the_user() -> None:
    preference = {
        "devices": {"preferredDiskBus": "virtio", "preferredInterfaceModel": "virtio", "preferredRng": {}},
        "machine": {"preferredMachineType": "q35"},
        "preferredSubdomain": "marsh",
        "firmware": {"preferredEfi": {}},
    }
    spec = filled(
        {
            "subdomain": "own",
            **machine(
                machine={"type": "pc"},
                firmware={"bootloader": {"bios": {}}, "uuid": "u"},
                devices={
                    "disks": [{"name": "a", "disk": {"bus": "sata"}}, {"name": "b"}, {"name": "c", "cdrom": {}}],
                    "interfaces": [{"name": "n", "model": "e1000"}, {"name": "m"}],
                },
            ),
        },
        preference,
    )
    domain = spec["domain"]
    assert [d.get("disk", {}).get("bus") for d in domain["devices"]["disks"]] == ["sata", "virtio", None]
    assert [i["model"] for i in domain["devices"]["interfaces"]] == ["e1000", "virtio"]
    assert domain["devices"]["rng"] == {}
    assert domain["machine"] == {"type": "pc"}
    assert domain["firmware"] == {"bootloader": {"bios": {}}, "uuid": "u"}
    assert spec["subdomain"] == "own"


def test_disks_get_an_io_thread_only_on_virtio() -> None:
    preference = {"devices": {"preferredDiskBus": "sata", "preferredDiskDedicatedIoThread": True}}
    disks = [{"name": "a", "disk": {"bus": "virtio"}}, {"name": "b", "disk": {}}, {"name": "c", "lun": {}}]
    spec = filled(machine(devices={"disks": disks}), preference)
    assert [d.get("dedicatedIOThread") for d in spec["domain"]["devices"]["disks"]] == [True, None, None]


def test_what_two_disks_get_is_not_shared_between_them() -> None:
    preference = {"devices": {"preferredDiskBlockSize": {"custom": {"logical": 512}}}}
    spec = filled(machine(devices={"disks": [{"name": "a", "disk": {}}, {"name": "b", "disk": {}}]}), preference)
    first, second = spec["domain"]["devices"]["disks"]
    first["blockSize"]["custom"]["logical"] = 4096
    assert second["blockSize"]["custom"]["logical"] == 512


def test_false_is_an_answer_that_a_preference_respects() -> None:
    preference = {"devices": {"preferredAutoattachMemBalloon": True, "preferredBlockMultiQueue": True}}
    spec = filled(machine(devices={"autoattachMemBalloon": False, "blockMultiQueue": False}), preference)
    assert spec["domain"]["devices"] == {"autoattachMemBalloon": False, "blockMultiQueue": False}


def test_masquerade_is_preferred_on_the_pod_network_only() -> None:
    preference = {"devices": {"preferredInterfaceMasquerade": {}}}
    spec = machine(devices={"interfaces": [{"name": "pod"}, {"name": "lan"}, {"name": "own", "bridge": {}}]})
    spec["networks"] = [{"name": "pod", "pod": {}}, {"name": "lan", "multus": {"networkName": "l"}}]
    interfaces = filled(spec, preference)["domain"]["devices"]["interfaces"]
    assert interfaces == [{"name": "pod", "masquerade": {}}, {"name": "lan"}, {"name": "own", "bridge": {}}]


def test_clock_offsets_are_taken_whole_or_not_at_all() -> None:
    preference = {"clock": {"preferredClockOffset": {"utc": {}}, "preferredTimer": {"hpet": {"present": False}}}}
    assert filled(machine(), preference)["domain"]["clock"] == {"utc": {}, "timer": {"hpet": {"present": False}}}
    own = filled(machine(clock={"timezone": "Europe/Berlin", "timer": {"kvm": {}}}), preference)
    assert own["domain"]["clock"] == {"timezone": "Europe/Berlin", "timer": {"kvm": {}}}


def test_enlightenments_merge_one_by_one_unless_all_are_passed_through() -> None:
    preference = {"features": {"preferredHyperv": {"relaxed": {}, "spinlocks": {"spinlocks": 8191}}}}
    spec = filled(machine(features={"hyperv": {"spinlocks": {"spinlocks": 4096}}}), preference)
    assert spec["domain"]["features"]["hyperv"] == {"relaxed": {}, "spinlocks": {"spinlocks": 4096}}
    passed = filled(machine(features={"hypervPassthrough": {"enabled": True}}), preference)
    assert "hyperv" not in passed["domain"]["features"]


@pytest.mark.parametrize(
    ("preferred", "bootloader"),
    [
        ({"preferredUseBios": True, "preferredUseBiosSerial": True}, {"bios": {"useSerial": True}}),
        ({"preferredUseEfi": True, "preferredUseSecureBoot": True}, {"efi": {"secureBoot": True}}),
        ({"preferredUseEfi": True, "preferredEfi": {"persistent": True}}, {"efi": {"persistent": True}}),
        ({"preferredUseBios": True, "preferredEfi": {}}, {"bios": {}}),
    ],
)
def test_firmware_preferences_old_and_new(preferred: Object, bootloader: Object) -> None:
    assert filled(machine(), {"firmware": preferred})["domain"]["firmware"] == {"bootloader": bootloader}


def test_cpu_features_add_to_the_users() -> None:
    preference = {"cpu": {"preferredCPUFeatures": [{"name": "vmx"}, {"name": "avx", "policy": "require"}]}}
    spec = filled(machine(cpu={"features": [{"name": "vmx", "policy": "disable"}]}), preference)
    assert spec["domain"]["cpu"]["features"] == [
        {"name": "vmx", "policy": "disable"},
        {"name": "avx", "policy": "require"},
    ]


def test_missing_devices_are_added_so_that_preferences_reach_them() -> None:
    preference = {
        "devices": {
            "preferredAutoattachInputDevice": True,
            "preferredDiskBus": "virtio",
            "preferredInputType": "tablet",
            "preferredInterfaceModel": "virtio",
        }
    }
    template = machine(devices={"disks": [{"name": "a", "disk": {}}]})
    template["volumes"] = [{"name": name, "containerDisk": {"image": "i"}} for name in ("a", "b")]
    spec = filled(complete_devices(template, preference, binding="masquerade"), preference)
    devices = spec["domain"]["devices"]
    assert devices["disks"][1] == {"name": "b", "disk": {"bus": "virtio"}}
    assert devices["interfaces"] == [{"name": "default", "masquerade": {}, "model": "virtio"}]
    assert devices["inputs"] == [{"name": "default-0", "type": "tablet"}]


def test_no_interface_is_added_where_none_is_wanted() -> None:
    spec = complete_devices(machine(devices={"autoattachPodInterface": False}), None)
    assert "interfaces" not in spec["domain"]["devices"]
    assert "networks" not in spec


def test_annotations_of_an_instancetype_must_not_differ() -> None:
    sized, preferred = {"annotations": {"a": "1", "b": "2"}}, {"annotations": {"a": "9"}}
    merged, conflicts = apply_annotations({"a": "1"}, sized, preferred)
    assert merged == {"a": "1", "b": "2"}
    assert conflicts == []
    _, conflicts = apply_annotations({"a": "1"}, {"annotations": {"a": "2"}}, None)
    assert conflicts == ["annotations.a"]


def test_the_preferred_class_fills_templates_that_name_none() -> None:
    templates: list[Object] = [{"spec": {"storage": {}}}, {"spec": {"pvc": {"storageClassName": ""}}}]
    result = apply_to_templates(templates, {"volumes": {"preferredStorageClassName": "fast"}})
    assert result[0]["spec"]["storage"] == {"storageClassName": "fast"}
    assert result[1]["spec"]["pvc"] == {"storageClassName": ""}
    assert templates[0] == {"spec": {"storage": {}}}


CRANE: Object = {"requirements": {"cpu": {"guest": 4}, "memory": {"guest": "3Gi"}}}


@pytest.mark.parametrize(
    ("spec", "instancetype", "preference", "fields", "message"),
    [
        (
            machine(),
            {"cpu": {"guest": 2}, "memory": {"guest": "1Gi"}},
            CRANE,
            ["spec.instancetype"],
            "insufficient CPU resources of 2 vCPU provided by instance type, preference requires 4 vCPU",
        ),
        (
            machine(),
            {"cpu": {"guest": 4}, "memory": {"guest": "1Gi"}},
            CRANE,
            ["spec.instancetype"],
            "insufficient Memory resources of 1Gi provided by instance type, preference requires 3Gi",
        ),
        (
            machine(cpu={"sockets": 1}, memory={"guest": "256Mi"}),
            None,
            CRANE,
            ["spec.template.spec.domain.cpu.sockets"],
            "insufficient CPU resources of 1 vCPU provided by VirtualMachine, "
            "preference requires 4 vCPU provided as sockets",
        ),
        (
            machine(cpu={"sockets": 4}, memory={"guest": "256Mi"}),
            None,
            CRANE,
            ["spec.template.spec.domain.memory"],
            "insufficient Memory resources of 256Mi provided by VirtualMachine, preference requires 3Gi",
        ),
        (
            {"architecture": "amd64", **machine()},
            None,
            {"requirements": {"architecture": "arm64"}},
            ["spec.template.spec.architecture"],
            "preference requires architecture arm64 but amd64 is being requested",
        ),
        (
            machine(),
            None,
            CRANE,
            ["spec.template.spec.domain.cpu"],
            "no CPU resources provided by VirtualMachine, preference requires 4 vCPU",
        ),
    ],
)
def test_unmet_requirements_are_told_in_kubevirts_words(
    spec: Object, instancetype: Object | None, preference: Object, fields: list[str], message: str
) -> None:
    unmet = requirements_error(spec, instancetype, preference)
    assert unmet == (fields, message)


def test_met_requirements_are_silent() -> None:
    assert requirements_error(machine(), SMALL, CRANE) is None
    enough = machine(cpu={"sockets": 4}, memory={"guest": "3072Mi"})
    assert requirements_error(enough, None, CRANE) is None
    any_shape = {**CRANE, "cpu": {"preferredCPUTopology": "any"}}
    spread = machine(cpu={"sockets": 2, "cores": 2, "threads": 1}, memory={"guest": "4Gi"})
    assert requirements_error(spread, None, any_shape) is None
    assert requirements_error(machine(), None, None) is None

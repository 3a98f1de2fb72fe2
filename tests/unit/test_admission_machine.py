"""What a user sees when a machine or an instance is created or changed: defaults, refusals, what stays untouched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.admission_world import OWN, Objects, instance, machine, send, thing

from stead.kube.errors import ApiError
from stead.server.admission import Admission
from stead.server.admission.gates import enabled_gates

ROOT = {"name": "root", "containerDisk": {"image": "registry.example/os:1"}}


def refusal(*arguments: Any, **named: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        send(*arguments, **named)
    return caught.value


def fields(error: ApiError) -> list[str]:
    return [c.get("field", "") for c in (error.details or {}).get("causes", [])]


def test_a_machine_keeps_what_its_user_wrote_and_gets_a_lasting_identity() -> None:
    sent = machine()
    before = copy.deepcopy(sent)
    stored = send(sent)
    assert sent == before
    spec = stored["spec"]["template"]["spec"]
    assert spec["architecture"] == "amd64"
    assert spec["domain"]["machine"] == {"type": "q35"}
    assert spec["domain"]["firmware"].keys() == {"uuid", "serial"}
    assert "cpu" not in spec["domain"]
    assert "evictionStrategy" not in spec


def test_an_update_never_gives_a_new_identity() -> None:
    stored = send(machine())
    changed = copy.deepcopy(stored)
    del changed["spec"]["template"]["spec"]["domain"]["firmware"]
    assert "firmware" not in send(changed, stored)["spec"]["template"]["spec"]["domain"]


def test_a_machine_that_is_being_deleted_can_always_be_written() -> None:
    dying = machine({"runStrategy": "Nonsense"})
    dying["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert send(dying, machine()) == dying


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"running": True}, "spec.running"),
        ({"runStrategy": None}, "spec.running"),
        ({"runStrategy": "Sometimes"}, "spec.runStrategy"),
    ],
)
def test_a_machine_says_once_whether_it_runs(spec: dict[str, Any], field: str) -> None:
    error = refusal(machine(spec))
    assert error.code == 422
    assert error.reason == "Invalid"
    assert fields(error) == [field]


def test_the_old_way_to_say_it_is_answered_with_a_warning() -> None:
    old_way = machine({"runStrategy": None, "running": False})
    del old_way["spec"]["runStrategy"]
    stored = send(old_way)
    assert Admission(Objects()).warnings(stored) == ["spec.running is deprecated, please use spec.runStrategy instead."]


def test_a_field_that_the_instancetype_decides_is_refused() -> None:
    kind = "VirtualMachineInstancetype"
    world = Objects(thing(kind, "small", {"cpu": {"guest": 1}, "memory": {"guest": "1Gi"}}))
    error = refusal(machine({"instancetype": {"kind": kind, "name": "small"}}), world=world)
    assert fields(error) == ["spec.template.spec.domain.memory.guest"]


def test_a_machine_may_be_made_before_its_instancetype() -> None:
    assert send(machine({"instancetype": {"name": "later"}}))["spec"]["instancetype"] == {"name": "later"}


def test_an_instancetype_is_inferred_from_the_boot_volume_and_written_down() -> None:
    label = "instancetype.kubevirt.io/default-instancetype"
    kind = "VirtualMachineInstancetype"
    world = Objects(
        thing("PersistentVolumeClaim", "disk", labels={label: "small", f"{label}-kind": kind}),
        thing(kind, "small", {"cpu": {"guest": 1}, "memory": {"guest": "1Gi"}}),
    )
    volume = {"name": "root", "persistentVolumeClaim": {"claimName": "disk"}}
    sent = machine({"instancetype": {"inferFromVolume": "root"}}, domain={"devices": {}}, volumes=[volume])
    assert send(sent, world=world)["spec"]["instancetype"] == {"kind": kind, "name": "small"}
    error = refusal(sent, world=Objects(thing("PersistentVolumeClaim", "disk")))
    assert (error.code, error.reason) == (400, "")


def test_an_instance_gets_all_that_it_runs_with() -> None:
    stored = send(instance(volumes=[ROOT]))
    spec = stored["spec"]
    assert spec["domain"]["cpu"] == {"sockets": 1, "cores": 1, "threads": 1, "model": "host-model", "maxSockets": 4}
    assert spec["domain"]["memory"] == {"guest": "1Gi", "maxGuest": "4Gi"}
    assert spec["domain"]["devices"]["disks"] == [{"name": "root", "disk": {"bus": "sata"}}]
    assert spec["networks"] == [{"name": "default", "pod": {}}]
    assert stored["status"]["phase"] == "Pending"
    assert stored["metadata"]["finalizers"] == ["kubevirt.io/foregroundDeleteVirtualMachine"]


def test_an_instance_without_memory_is_refused() -> None:
    error = refusal(instance(domain={"devices": {}}))
    assert "no memory requested" in error.message


def test_every_fault_is_named_at_once_but_only_ten_in_full() -> None:
    disks = [{"name": f"d{n}", "disk": {"bus": "ide"}} for n in range(6)]
    volumes = [{"name": f"d{n}", "emptyDisk": {"capacity": "1Gi"}} for n in range(6)]
    error = refusal(instance(domain={"devices": {"disks": disks}, "memory": {"guest": "1Gi"}}, volumes=volumes))
    assert len(fields(error)) == 10
    assert error.message.endswith(", and 2 more validation errors")


def test_only_the_control_plane_changes_an_instance() -> None:
    stored = send(instance())
    changed = copy.deepcopy(stored)
    changed["spec"]["hostname"] = "other"
    assert refusal(changed, stored).message == "update of VMI object is restricted"
    assert send(changed, stored, user=OWN)["spec"]["hostname"] == "other"


def test_status_that_a_person_sends_is_put_back() -> None:
    stored = send(instance())
    changed = copy.deepcopy(stored)
    changed["status"]["phase"] = "Running"
    changed["metadata"]["labels"] = {"team": "a"}
    kept = send(changed, stored)
    assert kept["status"] == stored["status"]
    assert kept["metadata"]["labels"] == {"team": "a"}
    assert send(changed, stored, user=OWN)["status"]["phase"] == "Running"


def test_a_permanent_volume_stays_and_a_plugged_one_comes_and_goes() -> None:
    stored = send(instance(volumes=[ROOT]))
    plugged = copy.deepcopy(stored)
    plugged["spec"]["volumes"].append({"name": "b", "persistentVolumeClaim": {"claimName": "c", "hotpluggable": True}})
    plugged["spec"]["domain"]["devices"]["disks"].append({"name": "b", "disk": {"bus": "scsi"}})
    assert send(plugged, stored, user=OWN) == plugged
    assert send(stored, plugged, user=OWN) == stored
    without = copy.deepcopy(stored)
    del without["spec"]["volumes"]
    assert refusal(without, stored, user=OWN).message == "Number of permanent volumes has changed"


def test_a_machine_holds_still_while_its_snapshot_is_taken() -> None:
    stored = {**send(machine()), "status": {"snapshotInProgress": "s"}}
    changed = copy.deepcopy(stored)
    changed["spec"]["runStrategy"] = "Halted"
    assert "until snapshot" in refusal(changed, stored).message


def test_gates_follow_their_stage() -> None:
    assert "HostDisk" not in enabled_gates({})
    assert "RebootPolicy" in enabled_gates({})
    listed = {"developerConfiguration": {"featureGates": ["HostDisk"], "disabledFeatureGates": ["RebootPolicy"]}}
    assert "HostDisk" in enabled_gates(listed)
    assert "RebootPolicy" not in enabled_gates(listed)
    ga_disabled = {"developerConfiguration": {"disabledFeatureGates": ["VideoConfig"]}}
    assert "VideoConfig" in enabled_gates(ga_disabled)


def test_a_host_path_is_refused_until_an_administrator_allows_it() -> None:
    volume = {"name": "root", "hostDisk": {"path": "/etc/shadow", "type": "Disk"}}
    assert refusal(machine(volumes=[volume])).message == "HostDisk feature gate is not enabled"
    open_gate = {"developerConfiguration": {"featureGates": ["HostDisk"]}}
    send(machine(volumes=[volume]), world=Objects(configuration=open_gate))

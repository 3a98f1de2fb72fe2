"""Which host does a backup, when a schedule makes one, and whose changed blocks are recorded."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from stead.controllers import tracking
from stead.controllers.backups import Seen, decide_host, decide_schedule, kubevirt_conditions, manifests

NOW = datetime(2026, 4, 2, 3, 0, tzinfo=UTC)
Object = dict[str, Any]


def backup(created: str = "2026-04-02T02:59:00Z") -> Object:
    metadata = {"name": "b1", "namespace": "ns", "creationTimestamp": created}
    return {"metadata": metadata, "spec": {"machine": "web", "repository": "main"}}


def machine(name: str = "web", **labels: str) -> Object:
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "root", "containerDisk": {}}]
    return {
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": "ns", "uid": "u", "labels": labels, "resourceVersion": "5"},
        "spec": {"template": {"spec": {"volumes": volumes}}}, "status": {"ready": True},
    }  # fmt: skip


def claim(node: str = "h1") -> Object:
    metadata = {"name": "c", "namespace": "ns", "annotations": {"volume.kubernetes.io/selected-node": node}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": {"volumeName": "pv"}}


def seen(**more: Any) -> Seen:
    values: dict[str, Any] = {
        "backup": backup(),
        "vm": machine(),
        "vmi": None,
        "repository": {},
        "claims": {"c": claim()},
    }
    return Seen(now=NOW, **{**values, **more})


def test_the_host_that_runs_it_else_the_one_that_has_its_disks() -> None:
    assert decide_host(seen()).host == "h1"
    assert decide_host(seen(vmi={"status": {"phase": "Running", "nodeName": "h2"}})).host == "h2"
    assert decide_host(seen(vmi={"status": {"phase": "Succeeded", "nodeName": "h2"}})).host == "h1"


def test_what_is_in_the_way_is_named_and_waited_for_with_patience() -> None:
    old = backup("2026-04-02T02:00:00Z")
    for more, reason in (
        ({"repository": None}, "RepositoryNotFound"),
        ({"vm": None}, "MachineNotFound"),
        ({"vmi": {"status": {"phase": "Scheduling"}}}, "MachineStarting"),
        ({"claims": {"c": None}}, "NoVolumes"),
    ):
        assert (decide_host(seen(**more)).reason, decide_host(seen(**more)).final) == (reason, False)
        assert decide_host(seen(backup=old, **more)).final
    assert decide_host(seen(claims={})).final
    assert decide_host(seen(claims={"c": claim("h1"), "d": claim("h2")})).reason == "SeveralHosts"


def test_the_manifests_that_are_kept_can_be_applied_again() -> None:
    vm, pvc = json.loads(manifests(seen()))
    assert vm["metadata"] == {"name": "web", "namespace": "ns", "labels": {}, "annotations": {}}
    assert "status" not in vm
    assert pvc["metadata"]["annotations"] == {}
    assert pvc["spec"] == {}


def schedule(**more: Any) -> Object:
    spec = {"schedule": "0 2 * * *", "repository": "main", "selector": {}, "retention": {"keepLast": 2}}
    metadata = {"name": "nightly", "namespace": "ns", "uid": "s", "creationTimestamp": "2026-03-01T00:00:00Z"}
    return {"metadata": metadata, "spec": spec | more, "status": {}}


def test_a_tick_makes_one_backup_a_machine_and_missed_ones_are_made_up_for_once() -> None:
    plan = decide_schedule(schedule(), [machine("a"), machine("b")], [], NOW)
    assert [made["spec"]["machine"] for made in plan.make] == ["a", "b"]
    assert plan.make[0]["spec"]["retention"] == {"keepLast": 2}
    assert plan.status["lastScheduleTime"] == "2026-04-02T02:00:00Z"
    assert plan.again_seconds == 23 * 3600
    again = decide_schedule(schedule() | {"status": plan.status}, [machine("a")], [], NOW)
    assert not again.make
    names = {made["metadata"]["name"] for made in plan.make}
    assert len(names) == 2
    assert all(len(name) <= 63 for name in names)


def test_a_machine_whose_last_backup_still_runs_is_passed_over() -> None:
    running = {"metadata": {"name": "x"}, "spec": {"machine": "a"}, "status": {"phase": "Running"}}
    plan = decide_schedule(schedule(), [machine("a"), machine("b")], [running], NOW)
    assert [made["spec"]["machine"] for made in plan.make] == ["b"]


def test_suspended_and_broken_schedules_make_nothing() -> None:
    assert not decide_schedule(schedule(suspend=True), [machine()], [], NOW).make
    broken = decide_schedule(schedule(schedule="never"), [machine()], [], NOW)
    assert not broken.make
    assert broken.status["message"]


def test_old_backups_of_a_machine_go() -> None:
    done = [
        {"metadata": {"name": f"n{i}", "creationTimestamp": f"2026-03-0{i}T00:00:00Z"}, "spec": {"machine": "a"},
         "status": {"phase": "Succeeded"}}
        for i in range(1, 9)
    ]  # fmt: skip
    assert decide_schedule(schedule(), [], done, NOW).remove == ("n1", "n2", "n3")


def test_whose_changes_are_recorded() -> None:
    vm, chosen = machine(cbt="on"), {"virtualMachineLabelSelector": {"matchLabels": {"cbt": "on"}}}
    gates = {"developerConfiguration": {"featureGates": ["IncrementalBackup"]}}
    kubevirt = {"spec": {"configuration": {"changedBlockTrackingLabelSelectors": chosen}}}
    gated = {"spec": {"configuration": {"changedBlockTrackingLabelSelectors": chosen, **gates}}}
    assert tracking.wanted(vm, None, kubevirt, []) == tracking.GATE_OFF
    assert tracking.wanted(vm, None, gated, []) == "Initializing"
    assert tracking.wanted(machine(), None, gated, []) == ""
    assert tracking.wanted(machine(), None, None, [schedule()]) == "Initializing"
    running = {"status": {"changedBlockTracking": {"state": "Enabled"}}}
    assert tracking.state_of_machine(vm, running, "Initializing") == "Enabled"
    assert tracking.state_of_machine(vm, {"status": {}}, "Initializing") == "PendingRestart"
    assert tracking.state_of_machine(vm, running, "") == "PendingRestart"
    assert tracking.state_of_machine(vm | running, None, "") == "Disabled"
    assert tracking.state_of_machine(vm, None, "") == ""


def test_kubevirts_own_backup_says_what_is_not_made() -> None:
    made = {"spec": {"source": {"kind": "VirtualMachine", "name": "web"}, "pvcName": "c"}}
    (waiting,) = kubevirt_conditions(made, None, "2026-04-02T03:00:00Z")
    assert waiting["message"] == "vm web is not running, cannot do backup"
    refused = kubevirt_conditions(made, {"status": {"phase": "Running"}}, "2026-04-02T03:00:00Z")
    assert {c["type"]: c["status"] for c in refused} == {"Progressing": "False", "Done": "True"}
    assert all("spec.pvcName" in c["message"] for c in refused)

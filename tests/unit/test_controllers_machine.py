"""A VirtualMachine's life cycle as its controllers make it, on a fake API and an instant agent."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from controller_world import Plane, machine, plane
from fake_agent import FakeAgent
from fake_client import FakeClient
from stead.controllers import machine_status as state
from stead.controllers.machine import decide_run
from stead.controllers.machine_status import View
from stead.controllers.start import ControllerOptions, run_controllers
from stead.kinds.register import (
    ADDRESS_CLAIM,
    CLUSTER_INSTANCETYPE,
    CONTROLLER_REVISION,
    LEASE,
    NODE,
    PERSISTENT_VOLUME_CLAIM,
    VIRTUAL_MACHINE,
    VIRTUAL_MACHINE_INSTANCE,
)

Object = dict[str, Any]


async def create(p: Plane, vm: Object) -> Object:
    return await p.client.create(VIRTUAL_MACHINE, vm)


async def patch(p: Plane, name: str, change: Object, subresource: str = "") -> Object:
    return await p.client.patch(VIRTUAL_MACHINE, "default", name, change, subresource)


async def new_instance(p: Plane, name: str, old_uid: str) -> Object:
    return await p.until(
        VIRTUAL_MACHINE_INSTANCE,
        name,
        lambda o: o["metadata"]["uid"] != old_uid and o["status"].get("phase") == "Running",
    )


async def instance(p: Plane, name: str = "vm1") -> Object:
    return await p.client.get(VIRTUAL_MACHINE_INSTANCE, "default", name)


def condition(obj: Object, kind: str) -> Object:
    return next((c for c in obj.get("status", {}).get("conditions", []) if c["type"] == kind), {})


async def test_always_starts_and_restarts_after_power_off() -> None:
    async with plane() as p:
        await create(p, machine())
        vm = await p.until_printable("vm1", "Running")
        assert condition(vm, "Ready")["status"] == "True"
        assert vm["status"]["created"]
        assert vm["status"]["ready"]
        first = await instance(p)
        assert first["status"]["nodeName"] == "host1"
        assert first["metadata"]["labels"]["kubevirt.io/nodeName"] == "host1"
        phases = [t["phase"] for t in first["status"]["phaseTransitionTimestamps"]]
        assert phases == ["Pending", "Scheduling", "Scheduled", "Running"]
        await p.agent.end("default", "vm1")
        await new_instance(p, "vm1", first["metadata"]["uid"])


async def test_address_is_kept_over_restart_and_released_at_the_end() -> None:
    async with plane() as p:
        await create(p, machine())
        await p.until_printable("vm1", "Running")
        first = await instance(p)
        await p.agent.end("default", "vm1")
        second = await new_instance(p, "vm1", first["metadata"]["uid"])
        key = "stead.io/addresses"
        assert first["metadata"]["annotations"][key] == second["metadata"]["annotations"][key]
        [claim] = p.client.of("addressclaims")
        assert claim["spec"]["machine"]["kind"] == "VirtualMachine"
        await p.client.delete(VIRTUAL_MACHINE, "default", "vm1")
        await p.until_gone(VIRTUAL_MACHINE, "vm1")
        await p.until_gone(ADDRESS_CLAIM, claim["metadata"]["name"])


async def test_halted_has_no_instance_and_stops_a_live_one() -> None:
    async with plane() as p:
        await create(p, machine(strategy="Halted"))
        vm = await p.until_printable("vm1", "Stopped")
        assert condition(vm, "Ready")["reason"] == "VMINotExists"
        await patch(p, "vm1", {"spec": {"runStrategy": "Always"}})
        await p.until_printable("vm1", "Running")
        await patch(p, "vm1", {"spec": {"runStrategy": "Halted"}})
        await p.until_printable("vm1", "Stopped")
        assert not p.client.of("virtualmachineinstances")


async def test_an_interface_that_nobody_declared_is_bound_as_the_settings_say() -> None:
    async with plane() as p:
        # A new installation says masquerade.
        await create(p, machine())
        await p.until_printable("vm1", "Running")
        interfaces = (await instance(p))["spec"]["domain"]["devices"]["interfaces"]
        assert interfaces == [{"name": "default", "masquerade": {}}]


async def test_a_halted_machine_that_is_asked_to_start_paused_starts_paused() -> None:
    async with plane() as p:
        await create(p, machine(strategy="Halted"))
        await p.until_printable("vm1", "Stopped")
        request = {"action": "Start", "data": {"paused": "true"}}
        await patch(p, "vm1", {"status": {"stateChangeRequests": [request]}}, "status")
        vm = await p.until_printable("vm1", "Running")
        assert vm["spec"]["runStrategy"] == "Always"
        assert (await instance(p))["spec"]["startStrategy"] == "Paused"


async def test_manual_starts_and_stops_on_request_only() -> None:
    async with plane() as p:
        await create(p, machine(strategy="Manual"))
        await p.until_printable("vm1", "Stopped")
        start = {"status": {"stateChangeRequests": [{"action": "Start"}]}}
        await patch(p, "vm1", start, "status")
        vm = await p.until_printable("vm1", "Running")
        assert "stateChangeRequests" not in vm["status"]
        first = await instance(p)
        await p.agent.end("default", "vm1")
        await p.until_printable("vm1", "Stopped")
        await p.settle()
        assert (await instance(p))["metadata"]["uid"] == first["metadata"]["uid"], "a Succeeded instance stays"
        await patch(p, "vm1", start, "status")
        second = await new_instance(p, "vm1", first["metadata"]["uid"])
        stop = {"status": {"stateChangeRequests": [{"action": "Stop", "uid": second["metadata"]["uid"]}]}}
        await patch(p, "vm1", stop, "status")
        await p.until_gone(VIRTUAL_MACHINE_INSTANCE, "vm1")
        vm = await p.until(VIRTUAL_MACHINE, "vm1", lambda o: "stateChangeRequests" not in o["status"])
        assert vm["status"]["printableStatus"] == "Stopped"


async def test_rerun_on_failure_restarts_after_a_crash_only() -> None:
    async with plane() as p:
        await create(p, machine(strategy="RerunOnFailure"))
        await p.until_printable("vm1", "Running")
        first = await instance(p)
        await p.agent.end("default", "vm1", "Failed")
        await new_instance(p, "vm1", first["metadata"]["uid"])
        await p.until_printable("vm1", "Running")
        await p.agent.end("default", "vm1", "Succeeded")
        await p.until_printable("vm1", "Stopped")
        await p.settle()
        vm = await p.until_printable("vm1", "Stopped")
        assert "stateChangeRequests" not in vm["status"]


async def test_once_runs_once() -> None:
    async with plane() as p:
        await create(p, machine(strategy="Once"))
        await p.until_printable("vm1", "Running")
        await p.agent.end("default", "vm1")
        await p.until_printable("vm1", "Stopped")
        await p.client.delete(VIRTUAL_MACHINE_INSTANCE, "default", "vm1")
        await p.until_gone(VIRTUAL_MACHINE_INSTANCE, "vm1")
        await p.settle()
        assert not p.client.of("virtualmachineinstances")


async def test_wait_as_receiver_waits() -> None:
    async with plane() as p:
        await create(p, machine(strategy="WaitAsReceiver"))
        await p.until_printable("vm1", "WaitingForReceiver")
        assert not p.client.of("virtualmachineinstances")


async def test_restart_request_makes_a_new_instance() -> None:
    async with plane() as p:
        await create(p, machine())
        await p.until_printable("vm1", "Running")
        uid = (await instance(p))["metadata"]["uid"]
        requests = [{"action": "Stop", "uid": uid}, {"action": "Start"}]
        await patch(p, "vm1", {"status": {"stateChangeRequests": requests}}, "status")
        await new_instance(p, "vm1", uid)
        await p.until(VIRTUAL_MACHINE, "vm1", lambda o: "stateChangeRequests" not in o["status"])


async def test_start_paused_is_passed_on() -> None:
    async with plane() as p:
        await create(p, machine(strategy="Manual"))
        await p.until_printable("vm1", "Stopped")
        request = {"action": "Start", "data": {"paused": "true"}}
        await patch(p, "vm1", {"status": {"stateChangeRequests": [request]}}, "status")
        await p.until_printable("vm1", "Running")
        assert (await instance(p))["spec"]["startStrategy"] == "Paused"


async def test_crash_loop_counts_and_backs_off() -> None:
    async with plane() as p:
        p.agent.fail_starts.add("vm1")
        await create(p, machine())
        vm = await p.until_printable("vm1", "CrashLoopBackOff")
        failure = vm["status"]["startFailure"]
        assert failure["consecutiveFailCount"] == 1
        assert failure["lastFailedVMIUID"] in p.agent.started
        past = {**failure, "retryAfterTimestamp": "2020-01-01T00:00:00Z"}
        await patch(p, "vm1", {"status": {"startFailure": past}}, "status")
        await p.until(VIRTUAL_MACHINE, "vm1", lambda o: o["status"]["startFailure"]["consecutiveFailCount"] == 2)
        p.agent.fail_starts.clear()
        vm = await p.until_printable("vm1", "CrashLoopBackOff")
        past = {**vm["status"]["startFailure"], "retryAfterTimestamp": "2020-01-01T00:00:00Z"}
        await patch(p, "vm1", {"status": {"startFailure": past}}, "status")
        vm = await p.until_printable("vm1", "Running")
        assert "startFailure" not in vm["status"]


async def test_restart_required_comes_and_goes() -> None:
    async with plane() as p:
        await create(p, machine())
        await p.until_printable("vm1", "Running")
        await patch(p, "vm1", {"spec": {"template": {"spec": {"hostname": "other"}}}})
        vm = await p.until(VIRTUAL_MACHINE, "vm1", lambda o: condition(o, "RestartRequired"))
        assert condition(vm, "RestartRequired")["message"] == state.RESTART_MESSAGE
        await patch(p, "vm1", {"spec": {"template": {"spec": {"hostname": None}}}})
        await p.until(VIRTUAL_MACHINE, "vm1", lambda o: not condition(o, "RestartRequired"))
        await patch(p, "vm1", {"spec": {"template": {"spec": {"domain": {"memory": {"guest": "65536Ki"}}}}}})
        await p.settle()
        assert not condition(await p.client.get(VIRTUAL_MACHINE, "default", "vm1"), "RestartRequired")


async def test_one_start_revision_is_live_and_named_by_the_instance() -> None:
    async with plane() as p:
        vm = await create(p, machine())
        await p.until_printable("vm1", "Running")
        first = await instance(p)
        await patch(p, "vm1", {"spec": {"template": {"spec": {"hostname": "other"}}}})
        await p.agent.end("default", "vm1")
        second = await new_instance(p, "vm1", first["metadata"]["uid"])
        await p.settle()
        prefix = f"revision-start-vm-{vm['metadata']['uid']}-"
        names = [r["metadata"]["name"] for r in p.client.of("controllerrevisions")]
        generation = second["metadata"]["annotations"]["kubevirt.io/vm-generation"]
        assert names == [prefix + generation]
        assert second["status"]["virtualMachineRevisionName"] == names[0]


async def test_instancetype_is_pinned() -> None:
    async with plane() as p:
        reference = {"kind": "VirtualMachineClusterInstancetype", "name": "u1.medium"}
        vm = machine(instancetype=reference, preference={"name": "alpine"})
        del vm["spec"]["template"]["spec"]["domain"]["memory"]
        await create(p, vm)
        told = await p.until_printable("vm1", "Running")
        first = await instance(p)
        assert first["spec"]["domain"]["memory"]["guest"] == "4Gi"
        assert first["metadata"]["annotations"]["kubevirt.io/cluster-instancetype-name"] == "u1.medium"
        pin = told["status"]["instancetypeRef"]["controllerRevisionRef"]["name"]
        revision = await p.client.get(CONTROLLER_REVISION, "default", pin)
        assert revision["data"]["spec"]["memory"]["guest"] == "4Gi"
        assert told["status"]["preferenceRef"]["controllerRevisionRef"]["name"].startswith("vm1-alpine-v1beta1-")
        await p.client.patch(CLUSTER_INSTANCETYPE, None, "u1.medium", {"spec": {"memory": {"guest": "8Gi"}}})
        await p.agent.end("default", "vm1")
        second = await new_instance(p, "vm1", first["metadata"]["uid"])
        assert second["spec"]["domain"]["memory"]["guest"] == "4Gi"


async def test_missing_instancetype_is_told_and_used_once_it_appears() -> None:
    async with plane() as p:
        await create(p, machine(instancetype={"name": "mine", "kind": "virtualmachineinstancetype"}))
        vm = await p.until(VIRTUAL_MACHINE, "vm1", lambda o: condition(o, "Failure"))
        assert "mine" in condition(vm, "Failure")["message"]
        assert not p.client.of("virtualmachineinstances")


async def test_orphan_deletion_leaves_the_instance_running() -> None:
    async with plane() as p:
        await create(p, machine())
        await p.until_printable("vm1", "Running")
        uid = (await instance(p))["metadata"]["uid"]
        await p.client.delete(VIRTUAL_MACHINE, "default", "vm1", propagation="Orphan")
        await p.until_gone(VIRTUAL_MACHINE, "vm1")
        await p.settle()
        left = await instance(p)
        assert left["metadata"]["uid"] == uid
        assert not left["metadata"].get("ownerReferences")
        assert left["status"]["phase"] == "Running"
        await create(p, machine())
        await p.until_printable("vm1", "Running")
        assert (await instance(p))["metadata"]["uid"] == uid, "a machine made anew adopts the instance"


async def test_deletion_waits_for_the_guest_and_leaves_nothing() -> None:
    async with plane() as p:
        await create(p, machine())
        await p.until_printable("vm1", "Running")
        p.agent.hold_shutdown.add("vm1")
        await p.client.delete(VIRTUAL_MACHINE, "default", "vm1")
        await p.until_printable("vm1", "Terminating")
        assert (await instance(p))["metadata"]["deletionTimestamp"]
        p.agent.hold_shutdown.clear()
        p.agent.poke()
        await p.until_gone(VIRTUAL_MACHINE, "vm1")
        await p.settle()
        assert not p.client.of("virtualmachineinstances")
        assert not p.client.of("controllerrevisions")


async def test_paused_and_stopping_are_shown() -> None:
    async with plane() as p:
        await create(p, machine())
        await p.until_printable("vm1", "Running")
        await p.agent.condition("default", "vm1", "Paused", "True", "PausedByUser")
        vm = await p.until_printable("vm1", "Paused")
        assert condition(vm, "Paused")["reason"] == "PausedByUser"
        await p.agent.condition("default", "vm1", "Paused", "False")
        vm = await p.until_printable("vm1", "Running")
        assert not condition(vm, "Paused")
        p.agent.hold_shutdown.add("vm1")
        await patch(p, "vm1", {"spec": {"runStrategy": "Halted"}})
        await p.until_printable("vm1", "Stopping")


async def test_unschedulable_says_why_for_each_host_and_recovers() -> None:
    async with plane() as p:
        vm = machine()
        vm["spec"]["template"]["spec"]["nodeSelector"] = {"rack": "7"}
        await create(p, vm)
        told = await p.until_printable("vm1", "ErrorUnschedulable")
        assert "host1: label rack=7 of nodeSelector is missing" in condition(told, "PodScheduled")["message"]
        node = p.client.of("nodes")[0]
        await p.client.patch(NODE, None, "host1", {"metadata": {"labels": {**node["metadata"]["labels"], "rack": "7"}}})
        vm = await p.until_printable("vm1", "Running")
        assert not condition(vm, "PodScheduled")


async def test_few_writes_from_create_to_running() -> None:
    async with plane() as p:
        await p.settle()
        before = len(p.client.writes)
        await create(p, machine())
        await p.until_printable("vm1", "Running")
        await p.settle()
        made = [w for w in p.client.writes[before:] if w[1] != "events"]
        assert len(made) <= 9, made


async def test_a_lost_race_or_a_failing_api_only_delays() -> None:
    async with plane() as p:
        from stead.kube.errors import ApiError

        failing = {"left": 24}

        def fail(verb: str, resource: Any, name: str) -> ApiError | OSError | None:
            if verb in ("create", "patch", "update") and failing["left"] and resource.kind != "Event":
                failing["left"] -= 1
                return ApiError("InternalError", "disk full") if failing["left"] % 2 else OSError("gone")
            return None

        await create(p, machine())
        p.client.fail = fail
        await p.until_printable("vm1", "Running", seconds=60)
        assert len(p.client.of("virtualmachineinstances")) == 1


# pure ----------------------------------------------------------------------------------------------------------------


def view(vm_status: Object | None = None, strategy: str = "Always", **rest: Any) -> View:
    vm = machine(strategy=strategy)
    vm["metadata"] |= {"uid": "u", "generation": 1, **rest.pop("metadata", {})}
    vm["status"] = vm_status or {}
    vm["spec"] |= rest.pop("spec", {})
    return View(vm=vm, vmi=rest.pop("vmi", None), now=datetime(2026, 1, 1, tzinfo=UTC), **rest)


def vmi(phase: str = "Running", *conditions: Object, **metadata: Any) -> Object:
    owner = {"kind": "VirtualMachine", "name": "vm1", "uid": "u", "controller": True}
    return {
        "metadata": {"name": "vm1", "uid": "i", "ownerReferences": [owner], **metadata},
        "status": {"phase": phase, "conditions": list(conditions)},
    }


def says(kind: str, status: str, reason: str = "") -> Object:
    return {"type": kind, "status": status, "reason": reason}


DELETED = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
WITH_PVC = {
    "template": {"spec": {"domain": {}, "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]}}
}
WITH_DV = {"template": {"spec": {"domain": {}, "volumes": [{"name": "d", "dataVolume": {"name": "c"}}]}}}
FAILURE = {"consecutiveFailCount": 1, "retryAfterTimestamp": "2026-01-01T00:01:00Z", "lastFailedVMIUID": "x"}


@pytest.mark.parametrize(
    ("expected", "case"),
    [
        ("Terminating", view(metadata=DELETED, vmi=vmi(**DELETED))),
        ("Stopping", view(vmi=vmi("Running", says("Paused", "True"), **DELETED))),
        ("Paused", view(vmi=vmi("Running", says("Paused", "True")))),
        ("Running", view(vmi=vmi("Running"))),
        ("ErrorPvcNotFound", view(vmi=vmi("Pending", says("Synchronized", "False", "FailedPvcNotFound")))),
        ("DataVolumeError", view(spec=WITH_DV, data_volumes={"c": {"status": {"phase": "Failed"}}})),
        ("ErrorUnschedulable", view(vmi=vmi("Scheduling", says("PodScheduled", "False", "Unschedulable")))),
        ("Provisioning", view(spec=WITH_DV, data_volumes={"c": {"status": {"phase": "ImportInProgress"}}})),
        ("Provisioning", view(spec=WITH_DV, strategy="Halted", data_volumes={"c": {"status": {"phase": "Pending"}}})),
        (
            "WaitingForVolumeBinding",
            view(spec=WITH_PVC, claims={"c": {"status": {"phase": "Pending"}}}, vmi=vmi("Pending")),
        ),
        ("ErrImagePull", view(vmi=vmi("Scheduled", says("Synchronized", "False", "ErrImagePull")))),
        ("ImagePullBackOff", view(vmi=vmi("Scheduled", says("Synchronized", "False", "ImagePullBackOff")))),
        ("Starting", view(vmi=vmi("Scheduled"))),
        ("Starting", view()),
        ("CrashLoopBackOff", view({"startFailure": FAILURE})),
        ("CrashLoopBackOff", view({"startFailure": FAILURE}, vmi=vmi("Failed"))),
        ("Stopped", view(strategy="Halted")),
        ("Stopped", view(strategy="Manual", vmi=vmi("Succeeded"))),
        ("WaitingForReceiver", view(strategy="WaitAsReceiver")),
        ("Unknown", view(vmi=vmi("Unknown"))),
    ],
)
def test_printable_status(expected: str, case: View) -> None:
    failure = case.vm["status"].get("startFailure")
    assert state.printable_status(case, failure, start_pending=False) == expected


def test_migrating_comes_before_paused() -> None:
    moving = vmi("Running", says("Paused", "True"))
    moving["status"]["migrationState"] = {"startTimestamp": "2026-01-01T00:00:00Z"}
    assert state.printable_status(view(vmi=moving), None, start_pending=False) == "Migrating"


def test_back_off_grows_to_its_cap() -> None:
    assert [state.backoff_seconds(n, 0.0) for n in (1, 2, 3, 4, 5, 6, 50)] == [10, 40, 90, 160, 250, 300, 300]
    assert all(state.backoff_seconds(n, 0.99) <= 300 for n in range(1, 60))


def test_a_start_failure_is_counted_once_per_instance() -> None:
    ended = view(vmi=vmi("Failed"))
    first = state.start_failure(ended)
    assert first
    again = state.start_failure(view({"startFailure": first}, vmi=vmi("Failed")))
    assert again == first
    other = state.start_failure(view({"startFailure": first}, vmi=vmi("Failed", uid="j")))
    assert other
    assert other["consecutiveFailCount"] == 2


def test_back_off_delays_the_start() -> None:
    run = decide_run(view({"startFailure": FAILURE}))
    assert (run.action, run.wait) == ("keep", 60.0)
    assert (
        decide_run(view({"startFailure": {**FAILURE, "retryAfterTimestamp": "2025-12-31T00:00:00Z"}})).action == "start"
    )


def test_running_flag_is_an_older_spelling() -> None:
    old = view(strategy="")
    old.vm["spec"]["running"] = True
    assert decide_run(old).action == "start"
    old.vm["spec"]["running"] = False
    assert decide_run(old).action == "keep"


async def test_controllers_stop_cleanly() -> None:
    before = len(asyncio.all_tasks())
    async with plane() as p:
        await create(p, machine())
        await p.until_printable("vm1", "Running")
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == before


@pytest.mark.parametrize("after", range(1, 13))
async def test_a_crash_after_any_write_is_made_good_by_the_next_start(after: int) -> None:
    """The controllers are killed right after their n-th write; new ones finish the work, once."""
    client = FakeClient()
    left = [10_000]
    dead = asyncio.Event()

    def crash(verb: str, resource: Any, name: str) -> OSError | None:
        if verb in ("create", "update", "patch", "delete"):
            left[0] -= 1
        if left[0] < 0:
            dead.set()
        return OSError("killed") if left[0] < 0 else None

    async with plane(client) as p:
        await create(p, machine(strategy="RerunOnFailure", preference={"name": "alpine"}))
        left[0] = after
        client.fail = crash
        async with asyncio.timeout(10):
            while not dead.is_set() and not any(
                v["status"].get("phase") == "Running" for v in client.of("virtualmachineinstances")
            ):
                await asyncio.sleep(0.01)
    client.fail = None
    for resource, name in ((NODE, "host1"), (LEASE, "host1")):
        namespace = "kube-node-lease" if resource is LEASE else None
        if any(k[1] == resource.plural for k in client.objects):
            await client.delete(resource, namespace, name)
    async with plane(client) as p:
        await p.until_printable("vm1", "Running")
        await p.settle()
        assert len(client.of("virtualmachineinstances")) == 1
        assert len(client.of("addressclaims")) == 1
        first = await instance(p)
        await p.agent.end("default", "vm1", "Failed")
        await new_instance(p, "vm1", first["metadata"]["uid"])
        assert len(client.of("addressclaims")) == 1


async def test_a_bare_instance_is_placed_and_its_address_goes_with_it() -> None:
    async with plane() as p:
        bare = {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": {"namespace": "default", "name": "bare"},
            "spec": machine()["spec"]["template"]["spec"],
        }
        await p.client.create(VIRTUAL_MACHINE_INSTANCE, bare)
        await p.until(VIRTUAL_MACHINE_INSTANCE, "bare", lambda o: o.get("status", {}).get("phase") == "Running")
        [claim] = p.client.of("addressclaims")
        assert claim["spec"]["machine"]["kind"] == "VirtualMachineInstance"
        await p.client.delete(VIRTUAL_MACHINE_INSTANCE, "default", "bare")
        await p.until_gone(VIRTUAL_MACHINE_INSTANCE, "bare")
        await p.until_gone(ADDRESS_CLAIM, claim["metadata"]["name"])


async def test_an_instance_that_no_host_ever_had_goes_at_once() -> None:
    async with plane() as p:
        vm = machine()
        vm["spec"]["template"]["spec"]["nodeSelector"] = {"rack": "7"}
        await create(p, vm)
        await p.until_printable("vm1", "ErrorUnschedulable")
        await p.client.delete(VIRTUAL_MACHINE, "default", "vm1")
        await p.until_gone(VIRTUAL_MACHINE, "vm1")
        assert not p.client.of("virtualmachineinstances")


async def test_rerun_on_failure_obeys_stop_and_restart_requests() -> None:
    async with plane() as p:
        await create(p, machine(strategy="RerunOnFailure"))
        await p.until_printable("vm1", "Running")
        uid = (await instance(p))["metadata"]["uid"]
        requests = [{"action": "Stop", "uid": uid}, {"action": "Start"}]
        await patch(p, "vm1", {"status": {"stateChangeRequests": requests}}, "status")
        second = await new_instance(p, "vm1", uid)
        await p.until(VIRTUAL_MACHINE, "vm1", lambda o: "stateChangeRequests" not in o["status"])
        stop = [{"action": "Stop", "uid": second["metadata"]["uid"]}]
        await patch(p, "vm1", {"status": {"stateChangeRequests": stop}}, "status")
        await p.until_printable("vm1", "Stopped")
        await p.settle()
        assert not p.client.of("virtualmachineinstances")


async def test_a_machine_made_anew_at_once_gets_new_disks() -> None:
    async with plane() as p:
        template = {
            "metadata": {"name": "root"},
            "spec": {"source": {"blank": {}}, "storage": {"resources": {"requests": {"storage": "1Gi"}}}},
        }
        vm = machine(dataVolumeTemplates=[template])
        vm["spec"]["template"]["spec"]["volumes"] = [{"name": "d", "dataVolume": {"name": "root"}}]
        await create(p, vm)
        await p.until_printable("vm1", "Running")
        old = (await p.client.get(PERSISTENT_VOLUME_CLAIM, "default", "root"))["metadata"]["uid"]
        await p.client.delete(VIRTUAL_MACHINE, "default", "vm1")
        await p.until_gone(VIRTUAL_MACHINE, "vm1")
        await create(p, vm)
        await p.until_printable("vm1", "Running")
        await p.settle()
        assert (await p.client.get(PERSISTENT_VOLUME_CLAIM, "default", "root"))["metadata"]["uid"] != old
        assert (await instance(p))["status"]["phase"] == "Running"


async def test_with_several_planes_one_works() -> None:
    client = FakeClient()
    tasks = [
        asyncio.create_task(run_controllers(client, ControllerOptions(identity=name), on_ready=lambda: None))
        for name in ("a", "b")
    ]
    async with FakeAgent(client):
        p = Plane(client, None)  # type: ignore[arg-type]  # the agent is run by the line above
        await create(p, machine())
        await p.until_printable("vm1", "Running")
        assert len(client.of("leases")) == 2
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

"""The controllers against the real API server (store, admission, validation), with an instant agent as the host."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from api_server import running_server
from controller_world import Plane, machine, plane
from stead.client.contract import Selection
from stead.kinds.register import (
    ADDRESS_CLAIM,
    CONTROLLER_REVISION,
    DATA_SOURCE,
    DATA_VOLUME,
    NAMESPACE,
    NODE,
    PERSISTENT_VOLUME,
    PERSISTENT_VOLUME_CLAIM,
    SERVICE_ACCOUNT,
    VIRTUAL_MACHINE,
    VIRTUAL_MACHINE_INSTANCE,
)

Object = dict[str, Any]


@pytest.fixture
async def world() -> AsyncIterator[Plane]:
    async with running_server() as server:
        async with plane(server.client) as running:
            await running.until(SERVICE_ACCOUNT, "default", bool)
            yield running


def condition(obj: Object, kind: str) -> Object:
    return next((c for c in obj.get("status", {}).get("conditions", []) if c["type"] == kind), {})


def phase_is(phase: str) -> Any:
    return lambda o: o.get("status", {}).get("phase") == phase


async def count(p: Plane, resource: Any, namespace: str | None = None) -> int:
    return len((await p.client.list(resource, Selection(namespace=namespace))).items)


async def test_a_golden_image_becomes_a_running_machine_and_leaves_nothing(world: Plane) -> None:
    p = world
    imported = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"namespace": "kubevirt-os-images", "name": "golden"},
        "spec": {
            "source": {"http": {"url": "http://images.example/a.qcow2"}},
            "storage": {"resources": {"requests": {"storage": "1Gi"}}},
        },
    }
    template = {
        "metadata": {"name": "root"},
        "spec": {
            "sourceRef": {"kind": "DataSource", "name": "debian12", "namespace": "kubevirt-os-images"},
            "storage": {"resources": {"requests": {"storage": "30Gi"}}},
        },
    }
    vm = machine(
        dataVolumeTemplates=[template],
        instancetype={"kind": "VirtualMachineClusterInstancetype", "name": "u1.medium"},
        preference={"kind": "VirtualMachineClusterPreference", "name": "ubuntu"},
    )
    vm["spec"]["template"]["spec"]["volumes"] = [{"name": "rootdisk", "dataVolume": {"name": "root"}}]
    del vm["spec"]["template"]["spec"]["domain"]["memory"]
    await p.client.create(VIRTUAL_MACHINE, vm)
    named = "DataSource kubevirt-os-images/debian12 not found"
    told = await p.until(VIRTUAL_MACHINE, "vm1", lambda o: named in condition(o, "DataVolumesReady").get("message", ""))
    assert told["status"]["printableStatus"] == "Provisioning"
    await p.client.create(DATA_VOLUME, imported)
    source = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataSource",
        "metadata": {"namespace": "kubevirt-os-images", "name": "debian12"},
        "spec": {"source": {"pvc": {"namespace": "kubevirt-os-images", "name": "golden"}}},
    }
    await p.client.create(DATA_SOURCE, source)
    told = await p.until_printable("vm1", "Running")
    assert condition(told, "Ready")["status"] == "True"
    claim = await p.client.get(PERSISTENT_VOLUME_CLAIM, "default", "root")
    assert claim["status"]["phase"] == "Bound"
    disk = await p.client.get(DATA_VOLUME, "default", "root")
    assert disk["status"]["phase"] == "Succeeded"
    await p.until(PERSISTENT_VOLUME, claim["spec"]["volumeName"], phase_is("Bound"))
    vmi = await p.client.get(VIRTUAL_MACHINE_INSTANCE, "default", "vm1")
    assert vmi["status"]["virtualMachineRevisionName"].startswith("revision-start-vm-")
    assert vmi["spec"]["domain"]["memory"]["guest"] == "4Gi"
    await p.client.delete(VIRTUAL_MACHINE, "default", "vm1")
    await p.until_gone(VIRTUAL_MACHINE, "vm1")
    await p.until_gone(DATA_VOLUME, "root")
    await p.until_gone(PERSISTENT_VOLUME_CLAIM, "root")
    await p.until_gone(PERSISTENT_VOLUME, claim["spec"]["volumeName"])
    for resource in (ADDRESS_CLAIM, CONTROLLER_REVISION, VIRTUAL_MACHINE_INSTANCE):
        for left in (await p.client.list(resource)).items:
            await p.until_gone(resource, left["metadata"]["name"], namespace=left["metadata"].get("namespace"))


async def test_restart_halt_and_orphan(world: Plane) -> None:
    p = world
    await p.client.create(VIRTUAL_MACHINE, machine())
    await p.until_printable("vm1", "Running")
    first = (await p.client.get(VIRTUAL_MACHINE_INSTANCE, "default", "vm1"))["metadata"]["uid"]
    await p.agent.end("default", "vm1")
    await p.until(VIRTUAL_MACHINE_INSTANCE, "vm1", lambda o: o["metadata"]["uid"] != first)
    await p.until_printable("vm1", "Running")
    await p.client.delete(VIRTUAL_MACHINE, "default", "vm1", propagation="Orphan")
    await p.until_gone(VIRTUAL_MACHINE, "vm1")
    left = await p.client.get(VIRTUAL_MACHINE_INSTANCE, "default", "vm1")
    assert left["status"]["phase"] == "Running"
    assert not left["metadata"].get("ownerReferences")
    await p.client.create(VIRTUAL_MACHINE, machine(strategy="Halted"))
    await p.until_printable("vm1", "Stopped")
    assert not await count(p, VIRTUAL_MACHINE_INSTANCE)


async def test_crash_loop_on_the_real_server(world: Plane) -> None:
    p = world
    p.agent.fail_starts.add("vm1")
    await p.client.create(VIRTUAL_MACHINE, machine())
    told = await p.until_printable("vm1", "CrashLoopBackOff")
    assert told["status"]["startFailure"]["consecutiveFailCount"] == 1


async def test_a_namespace_full_of_machines_goes(world: Plane) -> None:
    p = world
    await p.client.create(NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "foo"}})
    vm = machine()
    vm["metadata"]["namespace"] = "foo"
    await p.client.create(VIRTUAL_MACHINE, vm)
    await p.until_printable("vm1", "Running", namespace="foo")
    await p.client.delete(NAMESPACE, None, "foo")
    await p.until_gone(NAMESPACE, "foo", seconds=20)


async def test_the_host_is_known_and_unschedulable_is_told(world: Plane) -> None:
    p = world
    assert condition(await p.client.get(NODE, None, "host1"), "Ready")["status"] == "True"
    vm = machine()
    vm["spec"]["template"]["spec"]["nodeSelector"] = {"rack": "7"}
    await p.client.create(VIRTUAL_MACHINE, vm)
    await p.until_printable("vm1", "ErrorUnschedulable")
    await p.client.delete(VIRTUAL_MACHINE, "default", "vm1")
    await p.until_gone(VIRTUAL_MACHINE, "vm1")

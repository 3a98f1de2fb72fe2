"""Garbage collection, namespaces, hosts, events and bootstrap on a fake API."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from controller_world import machine, plane
from fake_client import FakeClient
from stead.client.informer import Informers, Key
from stead.controllers.addresses import candidates
from stead.controllers.bootstrap import bootstrap
from stead.controllers.conditions import is_condition, text_from_time
from stead.controllers.events import Recorder, is_expired
from stead.controllers.hosts import Hosts
from stead.controllers.runner import World
from stead.kinds.register import (
    CONFIG_MAP,
    KUBEVIRT,
    LEASE,
    NAMESPACE,
    NODE,
    SECRET,
    SERVICE_ACCOUNT,
    STORAGE_CLASS,
    STORAGE_PROFILE,
    VIRTUAL_MACHINE,
    VIRTUAL_MACHINE_INSTANCE,
)

Object = dict[str, Any]


def secret(name: str, *owners: Object, namespace: str = "default", blocking: bool = False) -> Object:
    references = [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "name": o["metadata"]["name"],
            "uid": o["metadata"]["uid"],
            "blockOwnerDeletion": blocking,
        }
        for o in owners
    ]
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"namespace": namespace, "name": name, "ownerReferences": references},
    }


async def test_background_collection_goes_down_and_waits_for_all_owners() -> None:
    async with plane() as p:
        a, b = [await p.client.create(SECRET, secret(n)) for n in ("a", "b")]
        child = await p.client.create(SECRET, secret("child", a, b))
        await p.client.create(SECRET, secret("grandchild", child))
        await p.client.delete(SECRET, "default", "a")
        await p.settle()
        assert await p.get(SECRET, "child")
        await p.client.delete(SECRET, "default", "b")
        await p.until_gone(SECRET, "child")
        await p.until_gone(SECRET, "grandchild")


async def test_a_dependent_of_an_owner_that_never_was_is_collected_even_after_a_restart() -> None:
    client = FakeClient()
    ghost = {"metadata": {"name": "ghost", "uid": "none"}}
    real = await client.create(SECRET, secret("real"))
    await client.create(SECRET, secret("kept", real))
    await client.create(SECRET, secret("orphan", ghost))
    stale = {"metadata": {"name": "real", "uid": "older"}}
    await client.create(SECRET, secret("stale", stale))
    async with plane(client) as p:
        await p.until_gone(SECRET, "orphan")
        await p.until_gone(SECRET, "stale")
        assert await p.get(SECRET, "kept")


async def test_foreground_deletion_keeps_the_owner_until_blocking_dependents_are_gone() -> None:
    async with plane() as p:
        await p.client.create(VIRTUAL_MACHINE, machine())
        await p.until_printable("vm1", "Running")
        p.agent.hold_shutdown.add("vm1")
        await p.client.delete(VIRTUAL_MACHINE, "default", "vm1", propagation="Foreground")
        await p.settle()
        assert (await p.client.get(VIRTUAL_MACHINE, "default", "vm1"))["metadata"]["deletionTimestamp"]
        p.agent.hold_shutdown.clear()
        p.agent.poke()
        await p.until_gone(VIRTUAL_MACHINE_INSTANCE, "vm1")
        await p.until_gone(VIRTUAL_MACHINE, "vm1")


async def test_orphaning_cuts_references() -> None:
    async with plane() as p:
        owner = await p.client.create(SECRET, secret("owner"))
        await p.client.create(SECRET, secret("child", owner))
        await p.client.delete(SECRET, "default", "owner", propagation="Orphan")
        await p.until_gone(SECRET, "owner")
        await p.settle()
        assert not (await p.client.get(SECRET, "default", "child"))["metadata"].get("ownerReferences")


async def test_namespaces_are_furnished_and_emptied() -> None:
    async with plane() as p:
        await p.client.create(NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "foo"}})
        await p.until(SERVICE_ACCOUNT, "default", bool, namespace="foo")
        ca = await p.until(CONFIG_MAP, "kube-root-ca.crt", bool, namespace="foo")
        assert ca["data"] == {"ca.crt": "PEM"}
        await p.client.delete(CONFIG_MAP, "foo", "kube-root-ca.crt")
        await p.until(CONFIG_MAP, "kube-root-ca.crt", bool, namespace="foo")
        held = secret("held", namespace="foo")
        held["metadata"]["finalizers"] = ["x/y"]
        await p.client.create(SECRET, held)
        vm = machine()
        vm["metadata"]["namespace"] = "foo"
        await p.client.create(VIRTUAL_MACHINE, vm)
        await p.until_printable("vm1", "Running", namespace="foo")
        await p.client.delete(NAMESPACE, None, "foo")
        told = await p.until(
            NAMESPACE, "foo", lambda o: is_condition(o, "NamespaceFinalizersRemaining", "True", "SomeFinalizersRemain")
        )
        assert told["status"]["phase"] == "Terminating"
        await p.client.patch(SECRET, "foo", "held", {"metadata": {"finalizers": None}})
        await p.until_gone(NAMESPACE, "foo")
        assert not [o for k, o in p.client.objects.items() if k[2] == "foo" and k[1] != "events"]


async def test_a_silent_host_becomes_unknown_by_our_own_clock() -> None:
    client = FakeClient()
    informers = Informers(client)
    world = World(client, informers, Recorder(client, "test"))
    clock = [100.0]
    hosts = Hosts(world, clock=lambda: clock[0])
    ready = {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "True"}]}
    await client.create(NODE, {"metadata": {"name": "h"}})
    await client.patch(NODE, None, "h", {"status": ready}, "status")
    await client.create(
        LEASE, {"metadata": {"namespace": "kube-node-lease", "name": "h"}, "spec": {"renewTime": "1999"}}
    )
    informers.start()
    await informers.wait_synced(5)
    assert await hosts.reconcile(Key("", "h"))
    clock[0] += 39
    await hosts.reconcile(Key("", "h"))
    assert is_condition(await client.get(NODE, None, "h"), "Ready", "True")
    clock[0] += 2
    await hosts.reconcile(Key("", "h"))
    node = await client.get(NODE, None, "h")
    assert is_condition(node, "Ready", "Unknown", "NodeStatusUnknown")
    assert is_condition(node, "Other", "True")
    await informers.stop()


async def test_events_are_counted_not_repeated() -> None:
    client = FakeClient()
    recorder = Recorder(client, "test")
    task = asyncio.create_task(recorder.run())
    target = {"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "n", "name": "s", "uid": "u"}}
    for _ in range(3):
        recorder.event(target, "Warning", "Broken", "it broke")
    recorder.event(target, "Normal", "Mended", "it works")
    async with asyncio.timeout(5):
        while len(client.writes) < 4:
            await asyncio.sleep(0.01)
    counts = {e["reason"]: e["count"] for e in client.of("events")}
    assert counts == {"Broken": 3, "Mended": 1}
    for _ in range(5000):
        recorder.event(target, "Normal", "Flood", "much")
    assert recorder.dropped
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_events_expire_after_an_hour() -> None:
    moment = datetime.now(UTC)
    event = {"metadata": {}, "lastTimestamp": text_from_time(moment - timedelta(minutes=59))}
    assert not is_expired(event, moment)
    assert is_expired({**event, "lastTimestamp": text_from_time(moment - timedelta(minutes=61))}, moment)
    assert not is_expired({"metadata": {}, "lastTimestamp": "rubbish"}, moment)


async def test_bootstrap_is_idempotent_and_respects_what_people_changed() -> None:
    client = FakeClient()
    role: Object = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "kubevirt.io:view"},
        "rules": [{"verbs": ["get"]}],
    }
    await bootstrap(client, lambda: datetime.now(UTC), roles=[role])
    assert (await client.get(KUBEVIRT, "kubevirt", "kubevirt"))["status"]["phase"] == "Deployed"
    assert len(client.of("virtualmachineclusterinstancetypes")) == 65
    assert len(client.of("virtualmachineclusterpreferences")) == 57
    local = {"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "false"}}}
    await client.patch(STORAGE_CLASS, None, "local", local)
    before = len(client.writes)
    await bootstrap(client, lambda: datetime.now(UTC), roles=[role])
    assert len(client.writes) == before
    await bootstrap(client, lambda: datetime.now(UTC), roles=[{**role, "rules": [{"verbs": ["list"]}]}])
    assert client.of("clusterroles")[0]["rules"] == [{"verbs": ["list"]}]


async def test_a_profile_comes_and_goes_with_its_class() -> None:
    async with plane() as p:
        await p.until(STORAGE_PROFILE, "local", lambda o: o.get("status", {}).get("claimPropertySets"))
        made = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "x"},
            "provisioner": "p",
        }
        await p.client.create(STORAGE_CLASS, made)
        await p.until(STORAGE_PROFILE, "x", lambda o: o.get("status", {}).get("provisioner") == "p")
        await p.client.delete(STORAGE_CLASS, None, "x")
        await p.until_gone(STORAGE_PROFILE, "x")


def test_address_candidates_cover_the_range_once() -> None:
    owner = {"namespace": "n", "name": "m", "uid": "u"}
    found = list(candidates("10.0.0.0/28", owner, "default"))
    assert sorted(found, key=lambda a: int(a.rpartition(".")[2])) == [f"10.0.0.{n}" for n in range(2, 15)]
    assert found == list(candidates("10.0.0.0/28", owner, "default"))


async def test_two_machines_never_share_an_address() -> None:
    async with plane(cpu="64", memory="64Gi") as p:
        for number in range(12):
            await p.client.create(VIRTUAL_MACHINE, machine(f"vm{number}"))
        for number in range(12):
            await p.until_printable(f"vm{number}", "Running")
        claims = p.client.of("addressclaims")
        assert len(claims) == 12
        assert len({c["spec"]["mac"] for c in claims}) == 12
        assert all(c["metadata"]["name"] == c["spec"]["ipv4"] for c in claims)

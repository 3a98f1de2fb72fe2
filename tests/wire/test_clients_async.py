"""PyPI clients with an event loop (`kubernetes_asyncio`, `kr8s`, `lightkube`), unmodified, against the server.

Each does what its users do: make, read, patch and remove core objects and machines, watch, and resume a watch.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.api_server import RunningServer, running_server
from tests.machine_manifests import GROUP, halted

from stead.kinds import register

pytest.importorskip("kubernetes_asyncio", reason="the client library kubernetes_asyncio is not installed")
pytest.importorskip("kr8s", reason="the client library kr8s is not installed")
pytest.importorskip("lightkube", reason="the client library lightkube is not installed")
import kr8s.asyncio
import lightkube
from kr8s.asyncio.objects import ConfigMap as Kr8sConfigMap
from kr8s.asyncio.objects import new_class
from kubernetes_asyncio import client, config, watch
from kubernetes_asyncio.client.exceptions import ApiException
from kubernetes_asyncio.leaderelection import electionconfig, leaderelection
from kubernetes_asyncio.leaderelection.resourcelock.leaselock import LeaseLock
from lightkube.core.exceptions import ApiError
from lightkube.generic_resource import create_namespaced_resource
from lightkube.models.coordination_v1 import LeaseSpec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.coordination_v1 import Lease
from lightkube.resources.core_v1 import ConfigMap
from lightkube.types import CascadeType, PatchType

pytestmark = pytest.mark.asyncio(loop_scope="module")

MACHINES = {**GROUP, "namespace": "default", "plural": "virtualmachines"}
Machine = create_namespaced_resource("kubevirt.io", "v1", "VirtualMachine", "virtualmachines")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def asyncio_api(server: RunningServer) -> AsyncIterator[Any]:
    async with await config.new_client_from_config(str(server.kubeconfig)) as api:
        yield api


async def test_asyncio_core_objects_and_machines(asyncio_api: Any) -> None:
    core, custom = client.CoreV1Api(asyncio_api), client.CustomObjectsApi(asyncio_api)
    body = {"metadata": {"name": "a1"}, "data": {"colour": "red"}}
    made = await core.create_namespaced_config_map("default", body)
    patched = await core.patch_namespaced_config_map("a1", "default", {"data": {"size": "big"}})
    assert patched.data == {"colour": "red", "size": "big"}
    with pytest.raises(ApiException) as stale:
        await core.replace_namespaced_config_map("a1", "default", made)
    assert stale.value.status == 409
    await core.delete_namespaced_config_map("a1", "default")
    await custom.create_namespaced_custom_object(body=halted("a1"), **MACHINES)
    operation = [{"op": "replace", "path": "/spec/runStrategy", "value": "Manual"}]
    patched_machine = await custom.patch_namespaced_custom_object(
        name="a1", body=operation, _content_type="application/json-patch+json", **MACHINES
    )
    assert patched_machine["spec"]["runStrategy"] == "Manual"
    await custom.delete_namespaced_custom_object(name="a1", **MACHINES)


async def test_asyncio_watch_resumes_without_loss_or_repeat(asyncio_api: Any) -> None:
    core = client.CoreV1Api(asyncio_api)
    version = (await core.list_namespaced_config_map("default")).metadata.resource_version
    names = [f"aw-{number}" for number in range(6)]
    for name in names:
        await core.create_namespaced_config_map("default", {"metadata": {"name": name}})
    told: list[str] = []
    for _ in range(2):
        watcher = watch.Watch()
        stream = watcher.stream(
            core.list_namespaced_config_map, "default", resource_version=version, timeout_seconds=10
        )
        async for event in stream:
            told.append(event["object"].metadata.name)
            version = event["object"].metadata.resource_version
            if len(told) % 3 == 0:
                break
        await watcher.close()
    assert told == names


async def test_asyncio_leader_is_followed_by_another(asyncio_api: Any, server: RunningServer) -> None:
    leaders: list[str] = []

    async def elect(identity: str) -> None:
        async def started() -> None:
            leaders.append(identity)

        async def stopped() -> None:
            leaders.append(f"not {identity}")

        lock = LeaseLock("election", "default", identity, asyncio_api)
        settings = electionconfig.Config(lock, 3, 2, 1, started, stopped)
        await leaderelection.LeaderElection(settings).run()

    first = asyncio.create_task(elect("ann"))
    await until(lambda: leaders == ["ann"])
    second = asyncio.create_task(elect("ben"))
    await asyncio.sleep(1.5)
    assert leaders == ["ann"]
    first.cancel()
    await until(lambda: leaders == ["ann", "ben"])
    second.cancel()
    lease = await server.client.get(register.LEASE, "default", "election")
    assert lease["spec"]["holderIdentity"] == "ben"


async def until(condition: Any) -> None:
    """Wait for a condition, 20 s at most."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.05)


async def test_kr8s_objects(server: RunningServer) -> None:
    api = await kr8s.asyncio.api(kubeconfig=str(server.kubeconfig))
    assert (await api.version())["gitVersion"].startswith("v1.")
    made = await Kr8sConfigMap({"metadata": {"name": "k1", "namespace": "default"}, "data": {"a": "b"}}, api=api)
    await made.create()
    await made.patch({"data": {"c": "d"}})
    assert made.data == {"a": "b", "c": "d"}
    await made.label({"app": "shop"})
    assert [found.name async for found in api.get("configmaps", namespace="default", label_selector="app=shop")] == [
        "k1"
    ]
    assert await made.exists()
    await made.delete()
    await made.wait("delete", timeout=10)
    assert not await made.exists()


async def test_kr8s_machines_are_found_by_discovery_and_watched(server: RunningServer) -> None:
    api = await kr8s.asyncio.api(kubeconfig=str(server.kubeconfig))
    kind = new_class("VirtualMachine", version="kubevirt.io/v1", namespaced=True, asyncio=True)
    machine = await kind(halted("k2"), api=api)
    await machine.create()
    await machine.patch({"spec": {"runStrategy": "Manual"}})
    assert [m.raw["spec"]["runStrategy"] async for m in api.get("virtualmachines", "k2")] == ["Manual"]
    told = []
    async with asyncio.timeout(20):
        async for event, found in api.watch("virtualmachines.kubevirt.io", namespace="default"):
            told.append((event, found.name, found.raw["spec"]["runStrategy"]))
            if len(told) == 1:
                await machine.patch([{"op": "replace", "path": "/spec/runStrategy", "value": "Halted"}], type="json")
            if event == "MODIFIED":
                break
    assert told == [("ADDED", "k2", "Manual"), ("MODIFIED", "k2", "Halted")]
    await machine.delete()


async def test_kr8s_candidates_take_a_lease_by_compare_and_swap(server: RunningServer) -> None:
    """Kr8s has no election of its own: what one needs of a Lease, by its own calls."""
    api = await kr8s.asyncio.api(kubeconfig=str(server.kubeconfig))
    kind = new_class("Lease", version="coordination.k8s.io/v1", namespaced=True, asyncio=True)

    def body(holder: str) -> dict[str, Any]:
        return {"metadata": {"name": "kr8s", "namespace": "default"}, "spec": {"holderIdentity": holder}}

    candidates = [await kind(body(name), api=api) for name in ("ann", "ben", "cay")]
    made = await asyncio.gather(*(one.create() for one in candidates), return_exceptions=True)
    assert sum(result is None for result in made) == 1, "one of them made the Lease"
    seen = [await kind.get("kr8s", namespace="default", api=api) for _ in range(3)]
    taken = await asyncio.gather(
        *(
            lease.patch(
                [
                    {
                        "op": "test",
                        "path": "/metadata/resourceVersion",
                        "value": lease.raw["metadata"]["resourceVersion"],
                    },
                    {"op": "replace", "path": "/spec/holderIdentity", "value": f"next-{number}"},
                ],
                type="json",
            )
            for number, lease in enumerate(seen)
        ),
        return_exceptions=True,
    )
    assert sum(result is None for result in taken) == 1, "and one took it over"
    holder = (await server.client.get(register.LEASE, "default", "kr8s"))["spec"]["holderIdentity"]
    assert holder == f"next-{[result is None for result in taken].index(True)}"


async def test_lightkube_candidates_take_a_lease_by_compare_and_swap(server: RunningServer) -> None:
    """Lightkube has no election of its own: what one needs of a Lease, by its own calls."""
    async with lightkube_client(server) as api:

        def lease(holder: str, version: str | None = None) -> Lease:
            metadata = ObjectMeta(name="light", namespace="default", resourceVersion=version)
            return Lease(metadata=metadata, spec=LeaseSpec(holderIdentity=holder, leaseDurationSeconds=3))

        made = await asyncio.gather(
            *(api.create(lease(name)) for name in ("ann", "ben", "cay")), return_exceptions=True
        )
        assert sum(isinstance(result, Lease) for result in made) == 1
        version = (await api.get(Lease, "light", namespace="default")).metadata.resourceVersion
        taken = await asyncio.gather(
            *(api.replace(lease(f"next-{number}", version)) for number in range(3)), return_exceptions=True
        )
        won = [number for number, result in enumerate(taken) if isinstance(result, Lease)]
        assert len(won) == 1
        assert all(result.status.reason == "Conflict" for result in taken if isinstance(result, ApiError))
        assert (await api.get(Lease, "light", namespace="default")).spec.holderIdentity == f"next-{won[0]}"


async def test_lightkube_objects(server: RunningServer) -> None:
    async with lightkube_client(server) as api:
        made = await api.create(ConfigMap(metadata=ObjectMeta(name="l1", namespace="default"), data={"a": "b"}))
        patched = await api.patch(ConfigMap, "l1", {"data": {"c": "d"}}, namespace="default")
        assert patched.data == {"a": "b", "c": "d"}
        with pytest.raises(ApiError) as stale:
            await api.replace(made)
        assert (stale.value.status.code, stale.value.status.reason) == (409, "Conflict")
        applied = ConfigMap(
            apiVersion="v1", kind="ConfigMap", metadata=ObjectMeta(name="l1", namespace="default"), data={"a": "x"}
        )
        with pytest.raises(ApiError) as conflict:
            await api.apply(applied, field_manager="git")
        assert "conflict with" in conflict.value.status.message
        assert (await api.apply(applied, field_manager="git", force=True)).data["a"] == "x"
        await api.set(ConfigMap, "l1", namespace="default", labels={"app": "light"})
        found = [item.metadata.name async for item in api.list(ConfigMap, labels={"app": "light"})]
        assert found == ["l1"]
        await api.delete(ConfigMap, "l1", cascade=CascadeType.BACKGROUND)
        assert [item async for item in api.list(ConfigMap, labels={"app": "light"})] == []


async def test_lightkube_machines_and_a_watch_from_a_version(server: RunningServer) -> None:
    async with lightkube_client(server) as api:
        made = await api.create(Machine.from_dict(halted("l2")))
        for strategy in ("Manual", "Halted"):
            body = {"spec": {"runStrategy": strategy}}
            await api.patch(Machine, "l2", body, namespace="default", patch_type=PatchType.MERGE)
        told = []
        stream = api.watch(Machine, namespace="default", resource_version=made.metadata.resourceVersion)
        async with asyncio.timeout(20):
            async for event, machine in stream:
                told.append((event, machine["spec"]["runStrategy"]))
                if len(told) == 2:
                    break
        assert told == [("MODIFIED", "Manual"), ("MODIFIED", "Halted")]
        await api.delete(Machine, "l2", namespace="default")


def lightkube_client(server: RunningServer) -> Any:
    """A client from the server's kubeconfig."""
    settings = lightkube.KubeConfig.from_file(str(server.kubeconfig))
    return lightkube.AsyncClient(config=settings, namespace="default", field_manager="lightkube")

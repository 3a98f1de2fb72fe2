"""Quotas, ranges and priorities on a live server with controllers: what tenants are refused, and what kubectl shows."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.api_server import RunningServer, running_server

from controller_world import Plane, plane
from stead.kinds import register
from stead.kube.errors import ApiError

Object = dict[str, Any]


class World:
    """A server and its controllers."""

    def __init__(self, server: RunningServer, running: Plane) -> None:
        self.server, self.plane, self.client = server, running, server.client

    async def make(self, resource: Any, name: str, **body: Any) -> Object:
        made = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": name}, **body}
        if resource.namespaced:
            made["metadata"]["namespace"] = "default"
        return await self.client.create(resource, made)

    async def refused(self, resource: Any, name: str, **body: Any) -> ApiError:
        with pytest.raises(ApiError) as caught:
            await self.make(resource, name, **body)
        return caught.value

    async def quota(self, name: str = "q", **hard: Any) -> None:
        await self.make(register.RESOURCE_QUOTA, name, spec={"hard": hard})

    async def used(self, name: str, want: Object, quota: str = "q") -> None:
        await self.plane.until(register.RESOURCE_QUOTA, quota, lambda q: q.get("status", {}).get("used") == want)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with running_server() as server, plane(server.client) as running:
        await running.until(register.SERVICE_ACCOUNT, "default", bool)
        yield World(server, running)


def claim(size: str, storage_class: str = "local") -> Object:
    return {
        "accessModes": ["ReadWriteOnce"], "storageClassName": storage_class,
        "resources": {"requests": {"storage": size}},
    }  # fmt: skip


def machine(memory: str = "128Mi", **spec: Any) -> Object:
    return {"domain": {"devices": {}, "memory": {"guest": memory}, **spec.pop("domain", {})}, **spec}


async def test_a_quota_refuses_in_kubernetes_words_counts_and_lets_go(world: World) -> None:
    await world.quota(**{"count/secrets": 2, "secrets": "2"})
    await world.make(register.SECRET, "a")
    await world.make(register.SECRET, "b")
    error = await world.refused(register.SECRET, "c")
    assert (error.code, error.message) == (
        403,
        'secrets "c" is forbidden: exceeded quota: q, requested: count/secrets=1,secrets=1, used: '
        "count/secrets=2,secrets=2, limited: count/secrets=2,secrets=2",
    )
    await world.used("q", {"count/secrets": "2", "secrets": "2"})
    await world.client.delete(register.SECRET, "default", "a")
    await world.make(register.SECRET, "c")
    await world.used("q", {"count/secrets": "2", "secrets": "2"})


async def test_concurrent_creates_never_pass_a_quota_together(world: World) -> None:
    await world.quota(**{"configmaps": 8, "requests.storage": "5Gi"})
    room = 8 - len(await maps(world))
    refusals: list[str] = []

    async def attempt(resource: Any, number: int, **body: Any) -> bool:
        try:
            await world.make(resource, f"n{number}", **body)
        except ApiError as error:
            refusals.append(error.message)
            return False
        return True

    got = await asyncio.gather(
        *(attempt(register.CONFIG_MAP, n) for n in range(40)),
        *(attempt(register.PERSISTENT_VOLUME_CLAIM, n, spec=claim("2Gi")) for n in range(20)),
    )
    assert (sum(got[:40]), sum(got[40:])) == (room, 2)
    assert all("exceeded quota: q" in text for text in refusals)


async def maps(world: World) -> list[Object]:
    return [o for o in world.server.api.registry.peek_all(register.CONFIG_MAP, "default")]


async def test_claims_count_by_size_class_and_growth(world: World) -> None:
    local = "local.storageclass.storage.k8s.io"
    hard = {"persistentvolumeclaims": 3, "requests.storage": "10Gi", f"{local}/requests.storage": "4Gi"}
    await world.quota(**hard)
    await world.make(register.PERSISTENT_VOLUME_CLAIM, "a", spec=claim("3Gi"))
    error = await world.refused(register.PERSISTENT_VOLUME_CLAIM, "b", spec=claim("2Gi"))
    assert f"requested: {local}/requests.storage=2Gi, used: {local}/requests.storage=3Gi" in error.message
    await world.make(register.PERSISTENT_VOLUME_CLAIM, "b", spec=claim("2Gi", "other"))
    want = {"persistentvolumeclaims": "2", "requests.storage": "5Gi", f"{local}/requests.storage": "3Gi"}
    await world.used("q", want)


async def test_machines_count_as_kubevirts_launcher_pods_and_the_controller_says_why(world: World) -> None:
    await world.quota(**{"pods": 1, "limits.memory": "4Gi", "count/virtualmachineinstances.kubevirt.io": 5})
    await world.make(register.VIRTUAL_MACHINE_INSTANCE, "one", spec=machine())
    error = await world.refused(register.VIRTUAL_MACHINE_INSTANCE, "two", spec=machine())
    assert error.message == (
        'virtualmachineinstances.kubevirt.io "two" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, '
        "limited: pods=1"
    )
    spec = {"runStrategy": "Always", "template": {"spec": machine()}}
    await world.make(register.VIRTUAL_MACHINE, "vm", spec=spec)

    def told(vm: Object) -> bool:
        conditions = vm.get("status", {}).get("conditions", [])
        return any("exceeded quota: q" in c.get("message", "") for c in conditions if c["type"] == "Failure")

    await world.plane.until(register.VIRTUAL_MACHINE, "vm", told)


async def test_a_scope_by_priority_counts_only_its_machines(world: World) -> None:
    await world.make(register.PRIORITY_CLASS, "high", value=100)
    scope = {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}
    await world.make(register.RESOURCE_QUOTA, "q", spec={"hard": {"pods": 0}, "scopeSelector": scope})
    await world.make(register.VIRTUAL_MACHINE_INSTANCE, "low", spec=machine())
    error = await world.refused(register.VIRTUAL_MACHINE_INSTANCE, "high", spec=machine(priorityClassName="high"))
    assert "exceeded quota: q, requested: pods=1" in error.message


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"hard": {"pods": 1}, "scopes": ["BestEffort"]}, "BestEffort"),
        ({"hard": {"pods": 1}, "scopes": ["Terminating"]}, "Terminating"),
        ({"hard": {"secrets": 1}, "scopes": ["PriorityClass"]}, "secrets"),
        ({"hard": {"requests.ephemeral-storage": "1Gi"}}, "requests.ephemeral-storage"),
        ({"hard": {"count/deployments.apps": 1}}, "count/deployments.apps"),
        ({"hard": {"machines": 1}}, "machines"),
        ({"hard": {"pods": -1}}, "must be greater than or equal to 0"),
        ({"hard": {"pods": "500m"}}, "must be an integer"),
    ],
)
async def test_what_a_quota_cannot_hold_is_refused_by_name(world: World, spec: Object, named: str) -> None:
    error = await world.refused(register.RESOURCE_QUOTA, "q", spec=spec)
    assert error.code == 422
    assert named in error.message


async def test_ranges_bound_claims_and_machines(world: World) -> None:
    limits = [
        {"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}},
        {"type": "Container", "max": {"memory": "1Gi"}, "default": {"cpu": "2"}},
    ]
    await world.make(register.LIMIT_RANGE, "r", spec={"limits": limits})
    small = await world.refused(register.PERSISTENT_VOLUME_CLAIM, "a", spec=claim("500Mi"))
    assert small.message == (
        'persistentvolumeclaims "a" is forbidden: minimum storage usage per PersistentVolumeClaim is 1Gi, but request '
        "is 500Mi"
    )
    large = await world.refused(register.PERSISTENT_VOLUME_CLAIM, "a", spec=claim("3Gi"))
    assert "maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi" in large.message
    big = await world.refused(register.VIRTUAL_MACHINE_INSTANCE, "big", spec=machine("2Gi"))
    assert big.code == 403
    assert "maximum memory usage per Container is 1Gi, but request is" in big.message
    fits = await world.make(register.VIRTUAL_MACHINE_INSTANCE, "fits", spec=machine("512Mi"))
    assert fits["spec"]["domain"]["resources"]["limits"]["cpu"] == "2"


async def test_priorities_are_known_reserved_and_one_is_the_default(world: World) -> None:
    assert (await world.client.get(register.PRIORITY_CLASS, None, "system-node-critical"))["value"] == 2000001000
    await world.make(register.PRIORITY_CLASS, "usual", value=10, globalDefault=True)
    second = await world.refused(register.PRIORITY_CLASS, "second", value=10, globalDefault=True)
    assert second.message == (
        'priorityclasses.scheduling.k8s.io "second" is forbidden: PriorityClass usual is already marked as default. '
        "Only one default can exist"
    )
    assert (await world.refused(register.PRIORITY_CLASS, "system-mine", value=1)).code == 422
    assert (await world.refused(register.PRIORITY_CLASS, "huge", value=1000000001)).code == 422
    await world.make(register.VIRTUAL_MACHINE_INSTANCE, "lost", spec=machine(priorityClassName="absent"))

    def told(vmi: Object) -> bool:
        conditions = vmi["status"].get("conditions", [])
        return any("no PriorityClass with name absent was found" in c.get("message", "") for c in conditions)

    await world.plane.until(register.VIRTUAL_MACHINE_INSTANCE, "lost", told)
    await world.make(register.PRIORITY_CLASS, "absent", value=1)
    await world.plane.until(register.VIRTUAL_MACHINE_INSTANCE, "lost", lambda vmi: vmi["status"].get("nodeName"))


async def kubectl(world: World, folder: Path, *words: str) -> str:
    program = (os.environ.get("KUBECTL") or shutil.which("kubectl") or "").split(":")[0]
    if not program:
        pytest.skip("no kubectl")
    environment = {"KUBECONFIG": str(world.server.kubeconfig), "HOME": str(folder), "PATH": os.environ["PATH"]}
    process = await asyncio.create_subprocess_exec(
        program, *words, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_kubectl_creates_and_describes_them(world: World, tmp_path: Path) -> None:
    assert await kubectl(world, tmp_path, "create", "quota", "q", "--hard=pods=3,count/secrets=7") == (
        "resourcequota/q created\n"
    )
    await kubectl(world, tmp_path, "create", "priorityclass", "gold", "--value=7", "--description=d")
    limits = [{"type": "PersistentVolumeClaim", "max": {"storage": "2Gi"}}]
    await world.make(register.LIMIT_RANGE, "r", spec={"limits": limits})
    await world.used("q", {"count/secrets": "0", "pods": "0"})
    described = await kubectl(world, tmp_path, "describe", "quota", "q")
    assert "count/secrets  0     7" in described
    assert "pods           0     3" in described
    assert "PersistentVolumeClaim  storage" in await kubectl(world, tmp_path, "describe", "limits")
    namespace = await kubectl(world, tmp_path, "describe", "ns", "default")
    assert "Name:          q" in namespace.replace("Name:           q", "Name:          q")
    assert "Resource Limits" in namespace
    assert "gold" in await kubectl(world, tmp_path, "get", "priorityclasses")
    assert "pods: 0/3" in await kubectl(world, tmp_path, "get", "quota")


@pytest.mark.parametrize("version", ["v1alpha1", "v1alpha2"])
async def test_old_instancetypes_are_refused_naming_the_version_to_use(world: World, version: str) -> None:
    group = "apis/instancetype.kubevirt.io"
    async with aiohttp.ClientSession() as session:
        for path, stated in ((version, version), ("v1beta1", version)):
            url = f"{world.server.url}/{group}/{path}/namespaces/default/virtualmachineinstancetypes"
            body = {"apiVersion": f"instancetype.kubevirt.io/{stated}", "kind": "VirtualMachineInstancetype"}
            async with session.post(url, json={**body, "metadata": {"name": "a"}}, ssl=world.server.ssl) as answer:
                status = await answer.json()
                assert answer.status in (400, 404)
                assert "instancetype.kubevirt.io/v1beta1" in status["message"]

"""The PyPI client `kubernetes`, unmodified, against the server: typed and dynamic verbs, watch and resume, election.

It blocks, so each test runs it in a thread, away from the server's event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.api_server import RunningServer, running_server
from tests.machine_manifests import GROUP, halted

pytest.importorskip("kubernetes", reason="the client library kubernetes is not installed")
from kubernetes import client, config, dynamic, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock

pytestmark = pytest.mark.asyncio(loop_scope="module")

MACHINES = {**GROUP, "namespace": "default", "plural": "virtualmachines"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        yield running


@pytest.fixture
def api(server: RunningServer) -> Any:
    return config.new_client_from_config(str(server.kubeconfig))


async def test_core_objects_are_made_read_patched_and_removed(api: Any) -> None:
    def work() -> None:
        core = client.CoreV1Api(api)
        body = {"metadata": {"name": "settings", "labels": {"app": "shop"}}, "data": {"colour": "red"}}
        made = core.create_namespaced_config_map("default", body)
        assert made.metadata.uid
        with pytest.raises(ApiException) as taken:
            core.create_namespaced_config_map("default", body)
        assert (taken.value.status, taken.value.reason) == (409, "Conflict")
        patched = core.patch_namespaced_config_map("settings", "default", {"data": {"size": "big"}})
        assert patched.data == {"colour": "red", "size": "big"}
        made.data = {"colour": "blue"}
        with pytest.raises(ApiException) as stale:
            core.replace_namespaced_config_map("settings", "default", made)
        assert stale.value.status == 409
        patched.data = {"colour": "blue"}
        assert core.replace_namespaced_config_map("settings", "default", patched).data == {"colour": "blue"}
        listed = core.list_namespaced_config_map("default", label_selector="app=shop")
        assert [item.metadata.name for item in listed.items] == ["settings"]
        core.delete_namespaced_config_map("settings", "default")
        with pytest.raises(ApiException) as gone:
            core.read_namespaced_config_map("settings", "default")
        assert gone.value.status == 404

    await asyncio.to_thread(work)


async def test_machines_through_the_custom_objects_api(api: Any) -> None:
    def work() -> None:
        custom = client.CustomObjectsApi(api)
        custom.create_namespaced_custom_object(body=halted("one"), **MACHINES)
        patch = {"spec": {"runStrategy": "Manual"}, "metadata": {"labels": {"tier": "front"}}}
        patched = custom.patch_namespaced_custom_object(name="one", body=patch, **MACHINES)
        assert patched["spec"]["runStrategy"] == "Manual"
        status = {"status": {"printableStatus": "Stopped"}}
        custom.patch_namespaced_custom_object_status(name="one", body=status, **MACHINES)
        read = custom.get_namespaced_custom_object_status(name="one", **MACHINES)
        assert read["status"]["printableStatus"] == "Stopped"
        assert read["metadata"]["generation"] == patched["metadata"]["generation"]
        listed = custom.list_namespaced_custom_object(label_selector="tier=front", **MACHINES)
        assert [item["metadata"]["name"] for item in listed["items"]] == ["one"]
        custom.delete_collection_namespaced_custom_object(label_selector="tier=front", **MACHINES)
        assert custom.list_namespaced_custom_object(label_selector="tier=front", **MACHINES)["items"] == []

    await asyncio.to_thread(work)


async def test_the_dynamic_client_finds_machines_by_discovery_and_applies(api: Any) -> None:
    def work() -> None:
        found = dynamic.DynamicClient(api).resources.get(api_version="kubevirt.io/v1", kind="VirtualMachine")
        made = found.server_side_apply(body=halted("applied"), namespace="default", field_manager="git")
        assert made.metadata.managedFields[0].manager == "git"
        body = {**halted("applied"), "spec": {**halted("applied")["spec"], "runStrategy": "Manual"}}
        with pytest.raises(dynamic.exceptions.ConflictError):
            found.server_side_apply(body=body, namespace="default", field_manager="other")
        assert found.get(name="applied", namespace="default").spec.runStrategy == "Halted"
        found.delete(name="applied", namespace="default")

    await asyncio.to_thread(work)


async def test_a_watch_resumes_without_loss_or_repeat(api: Any) -> None:
    def work() -> None:
        core = client.CoreV1Api(api)
        version = core.list_namespaced_config_map("default").metadata.resource_version
        names = [f"seen-{number}" for number in range(6)]
        for name in names:
            core.create_namespaced_config_map("default", {"metadata": {"name": name}})
        first = watch.Watch()
        stream = first.stream(core.list_namespaced_config_map, "default", resource_version=version, timeout_seconds=10)
        told = [event["object"].metadata.name for event in itertools.islice(stream, 3)]
        first.stop()
        resumed = first.resource_version
        second = watch.Watch()
        stream = second.stream(core.list_namespaced_config_map, "default", resource_version=resumed, timeout_seconds=10)
        told += [event["object"].metadata.name for event in itertools.islice(stream, 3)]
        second.stop()
        assert told == names

    await asyncio.to_thread(work)


async def test_one_of_two_candidates_leads_and_the_other_follows_it(api: Any) -> None:
    leaders: list[str] = []
    over = threading.Event()

    def lead(identity: str) -> None:
        def started() -> None:
            leaders.append(identity)
            over.wait(4)

        lock = LeaseLock("leader", "default", identity)
        lock.api_instance = client.CoordinationV1Api(api)
        settings = electionconfig.Config(
            lock, lease_duration=3, renew_deadline=2, retry_period=1, onstarted_leading=started, onstopped_leading=None
        )
        election = leaderelection.LeaderElection(settings)
        election.acquire()
        started()

    first = threading.Thread(target=lead, args=("ann",), daemon=True)
    first.start()
    while not leaders:
        await asyncio.sleep(0.05)
    second = threading.Thread(target=lead, args=("ben",), daemon=True)
    second.start()
    lease = await asyncio.to_thread(client.CoordinationV1Api(api).read_namespaced_lease, "leader", "default")
    assert lease.spec.holder_identity == "ann"
    assert leaders == ["ann"]
    over.set()
    await asyncio.to_thread(second.join, 30)
    assert leaders == ["ann", "ben"]
    lease = await asyncio.to_thread(client.CoordinationV1Api(api).read_namespaced_lease, "leader", "default")
    assert lease.spec.holder_identity == "ben"

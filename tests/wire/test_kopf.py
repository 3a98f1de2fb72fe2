"""An operator written with PyPI's `kopf`, unmodified, on our machines: handlers, a timer, a daemon, and peering.

Kopf keeps its progress in annotations and status, its finalizer by JSON patch with a test of the resourceVersion. The
kinds of its peering objects are made by the test as users make them: by CustomResourceDefinitions, whose schemas keep
unknown fields, since kopf writes a status of its own shape.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.api_server import RunningServer, running_server
from tests.machine_manifests import halted

from stead.client.contract import Selection
from stead.kinds import register
from stead.kinds.foreign import is_served, stored_resource

pytest.importorskip("kopf", reason="the framework kopf is not installed")
import kopf

pytestmark = pytest.mark.asyncio(loop_scope="module")

Object = dict[str, Any]

MERGE = "application/merge-patch+json"
MACHINE = ("kubevirt.io", "v1", "virtualmachines")


def peering(scope: str) -> Object:
    """The definition of a kind of kopf's peering objects."""
    kind = "KopfPeering" if scope == "Namespaced" else "ClusterKopfPeering"
    loose = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.lower()}s.kopf.dev"},
        "spec": {
            "scope": scope, "group": "kopf.dev",
            "names": {"kind": kind, "plural": f"{kind.lower()}s", "singular": kind.lower()},
            "versions": [{
                "name": "v1", "served": True, "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"status": loose}}},
            }],
        },
    }  # fmt: skip


#: kinds of peering objects, by scope
PEERINGS = {scope: stored_resource(peering(scope)) for scope in ("Namespaced", "Cluster")}


class Seen(msgspec.Struct):
    """What an operator's handlers were called with, and what it runs with."""

    calls: Counter[str] = msgspec.field(default_factory=Counter)
    stop: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    ready: asyncio.Event = msgspec.field(default_factory=asyncio.Event)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        for scope in PEERINGS:
            made = peering(scope)
            await running.client.create(register.CUSTOM_RESOURCE_DEFINITION, made)
            async with asyncio.timeout(10):
                name = made["metadata"]["name"]
                while not is_served(await running.client.get(register.CUSTOM_RESOURCE_DEFINITION, None, name)):
                    await asyncio.sleep(0.02)
        yield running


@contextlib.asynccontextmanager
async def operator(namespace: str, **options: Any) -> AsyncIterator[Seen]:
    """Run an operator on the machines of a namespace, "" for all."""
    seen = Seen()
    running = asyncio.create_task(
        kopf.operator(
            registry=registry_of(seen),
            settings=quick(),
            namespaces=[namespace] if namespace else [],
            clusterwide=not namespace,
            stop_flag=seen.stop,
            ready_flag=seen.ready,
            **options,
        )
    )
    try:
        async with asyncio.timeout(30):
            await seen.ready.wait()
        yield seen
    finally:
        seen.stop.set()
        async with asyncio.timeout(30):
            await running


def quick() -> kopf.OperatorSettings:
    """Settings without waits that only matter to people."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = True
    settings.process.ultimate_exiting_timeout = None
    return settings


def registry_of(seen: Seen) -> kopf.OperatorRegistry:
    """An operator's handlers: they count their calls, and say in status what they did."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(kopf.login_with_kubeconfig)

    @kopf.on.create(*MACHINE, registry=registry)
    async def created(name: str, patch: kopf.Patch, **_: Any) -> dict[str, str]:
        seen.calls[f"create {name}"] += 1
        patch.setdefault("metadata", {}).setdefault("labels", {})["seen"] = "yes"
        if seen.calls[f"create {name}"] == 1:
            raise kopf.TemporaryError("once more", delay=0.1)
        return {"done": "yes"}

    @kopf.on.update(*MACHINE, field="spec.runStrategy", registry=registry)
    async def changed(name: str, old: str, new: str, **_: Any) -> None:
        seen.calls[f"update {name} {old} {new}"] += 1

    @kopf.on.delete(*MACHINE, registry=registry)
    async def deleted(name: str, **_: Any) -> None:
        seen.calls[f"delete {name}"] += 1

    @kopf.timer(*MACHINE, interval=0.2, registry=registry)
    async def ticked(name: str, **_: Any) -> None:
        seen.calls[f"timer {name}"] += 1

    @kopf.daemon(*MACHINE, registry=registry, cancellation_timeout=2.0)
    async def lived(name: str, stopped: kopf.DaemonStopped, **_: Any) -> None:
        seen.calls[f"daemon {name}"] += 1
        await stopped.wait()
        seen.calls[f"daemon {name} over"] += 1

    return registry


async def until(condition: Callable[[], bool], what: Any) -> None:
    """Wait for a condition, 30 s at most."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(asyncio.timeout(30))
            while not condition():
                await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"waited in vain: {what}") from None


async def until_met(server: RunningServer, namespace: str, priorities: set[int]) -> None:
    """Wait until the peering tells of operators with these priorities, and the lower one has read it; 30 s at most."""
    kind = PEERINGS["Namespaced" if namespace else "Cluster"]
    async with asyncio.timeout(30):
        while True:
            status = (await server.client.get(kind, namespace or None, "default")).get("status", {})
            if {peer["priority"] for peer in status.values()} == priorities:
                break
            await asyncio.sleep(0.1)
    await asyncio.sleep(1)


async def test_handlers_timers_and_daemons_see_a_machines_whole_life(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
    await server.client.create(register.NAMESPACE, {"metadata": {"name": "kopf"}})
    async with operator("kopf", standalone=True) as seen:
        await server.client.create(register.VIRTUAL_MACHINE, halted("one", "kopf"))
        await until(lambda: seen.calls["create one"] == 2 and seen.calls["timer one"] > 2, seen.calls)
        body: Any = {"spec": {"runStrategy": "Manual"}}
        await server.client.patch(register.VIRTUAL_MACHINE, "kopf", "one", body, MERGE)
        await until(lambda: seen.calls["update one Halted Manual"] == 1, seen.calls)
        machine = await server.client.get(register.VIRTUAL_MACHINE, "kopf", "one")
        assert machine["metadata"]["labels"]["seen"] == "yes"
        assert "kopf.zalando.org/KopfFinalizerMarker" in machine["metadata"]["finalizers"]
        assert "kopf.zalando.org/last-handled-configuration" in machine["metadata"]["annotations"]
        await server.client.delete(register.VIRTUAL_MACHINE, "kopf", "one")
        await until(lambda: seen.calls["daemon one over"] == 1 and seen.calls["delete one"] == 1, seen.calls)
        for _ in range(100):
            left = (await server.client.list(register.VIRTUAL_MACHINE)).items
            if not left:
                break
            await asyncio.sleep(0.1)
        assert left == []
        assert seen.calls["create one"] == 2
        assert seen.calls["daemon one"] == 1


async def test_a_restarted_operator_goes_on_and_handles_nothing_twice(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
    await server.client.create(register.NAMESPACE, {"metadata": {"name": "again"}})
    await server.client.create(register.VIRTUAL_MACHINE, halted("two", "again"))
    async with operator("again", standalone=True) as seen:
        await until(lambda: seen.calls["create two"] == 2 and seen.calls["timer two"] > 2, seen.calls)
    body: Any = {"spec": {"runStrategy": "Manual"}}
    await server.client.patch(register.VIRTUAL_MACHINE, "again", "two", body, MERGE)
    async with operator("again", standalone=True) as second:
        await until(lambda: second.calls["update two Halted Manual"] == 1, second.calls)
        assert second.calls["create two"] == 0
        await server.client.delete(register.VIRTUAL_MACHINE, "again", "two")
        await until(lambda: second.calls["delete two"] == 1, second.calls)


@pytest.mark.parametrize("namespace", ["peers", ""])
async def test_of_two_peers_only_the_one_of_higher_priority_works(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, namespace: str
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
    where = namespace or "everywhere"
    await server.client.create(register.NAMESPACE, {"metadata": {"name": where}})
    kind = PEERINGS["Namespaced" if namespace else "Cluster"]
    metadata = {"name": "default", **({"namespace": namespace} if namespace else {})}
    await server.client.create(kind, {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata})
    async with operator(namespace, priority=1, peering_name="default") as low:
        await server.client.create(register.VIRTUAL_MACHINE, halted("before", where))
        await until(lambda: low.calls["create before"] == 2, low.calls)
        async with operator(namespace, priority=100, peering_name="default") as high:
            await until_met(server, namespace, {1, 100})
            await server.client.create(register.VIRTUAL_MACHINE, halted("during", where))
            await until(lambda: high.calls["create during"] == 2, high.calls)
            assert low.calls["create during"] == 0
        await server.client.create(register.VIRTUAL_MACHINE, halted("after", where))
        await until(lambda: low.calls["create after"] == 2, low.calls)
        assert high.calls["create after"] == 0
        await clear(server, where)


async def clear(server: RunningServer, namespace: str) -> None:
    """Delete the machines of a namespace, and wait until their operator has let go of them."""
    for machine in (await server.client.list(register.VIRTUAL_MACHINE, Selection(namespace))).items:
        await server.client.delete(register.VIRTUAL_MACHINE, namespace, machine["metadata"]["name"])
    async with asyncio.timeout(30):
        while (await server.client.list(register.VIRTUAL_MACHINE, Selection(namespace))).items:
            await asyncio.sleep(0.1)

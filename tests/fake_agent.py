"""A host's agent that does everything at once and nothing for real: for tests of controllers.

It registers one Node, takes instances from Scheduled to Running (or fails them), ends deleted ones, and makes and fills
volumes. `hold_transfers`, `fail_starts` and `fail_transfers` script it.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

from stead.client.contract import Client
from stead.client.informer import Informer
from stead.client.lease import micro_time
from stead.kinds.register import (
    LEASE,
    NODE,
    PERSISTENT_VOLUME,
    PERSISTENT_VOLUME_CLAIM,
    VIRTUAL_MACHINE_INSTANCE,
)
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError

Object = dict[str, Any]
FINALIZER = "kubevirt.io/foregroundDeleteVirtualMachine"


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ready_node(name: str, *, cpu: str = "4", memory: str = "16Gi", labels: dict[str, str] | None = None) -> Object:
    """A Node that placement likes."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/os": "linux",
                "kubevirt.io/schedulable": "true",
                "pool.stead.io/default": f"pool-of-{name}",
                **(labels or {}),
            },
        },
        "status": {
            "allocatable": {"cpu": cpu, "memory": memory},
            "conditions": [{"type": "Ready", "status": "True", "reason": "AgentReady", "lastTransitionTime": now()}],
        },
    }


class FakeAgent:
    """See the module's prose."""

    def __init__(self, client: Client, host: str = "host1", **node: Any) -> None:
        self.client = client
        self.host = host
        self.node = ready_node(host, **node)
        self.fail_starts: set[str] = set()
        self.fail_transfers: dict[str, tuple[str, str]] = {}
        self.hold_transfers: set[str] = set()
        self.hold_shutdown: set[str] = set()
        self.started: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._informers: dict[str, Informer] = {}

    async def __aenter__(self) -> FakeAgent:
        status = self.node["status"]
        made = await self.client.create(NODE, {k: v for k, v in self.node.items() if k != "status"})
        await self.client.update(NODE, {**made, "status": status}, "status")
        lease: Object = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        lease |= {"metadata": {"namespace": "kube-node-lease", "name": self.host}, "spec": {"renewTime": micro_time()}}
        await self.client.create(LEASE, lease)
        for resource in (VIRTUAL_MACHINE_INSTANCE, PERSISTENT_VOLUME_CLAIM, PERSISTENT_VOLUME):
            informer = self._informers[resource.plural] = Informer(self.client, resource)
            informer.add_listener(lambda old, new: self._changed.set())
            self._tasks.append(asyncio.create_task(informer.run()))
        self._tasks.append(asyncio.create_task(self._run()))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def poke(self) -> None:
        """Look again (after a hold was lifted)."""
        self._changed.set()

    async def end(self, namespace: str, name: str, phase: str = "Succeeded") -> None:
        """The guest powers off (Succeeded) or QEMU dies (Failed)."""
        vmi = await self.client.get(VIRTUAL_MACHINE_INSTANCE, namespace, name)
        await self._phase(vmi, phase)

    async def condition(self, namespace: str, name: str, kind: str, status: str, reason: str = "") -> None:
        """Set one condition of an instance."""
        vmi = await self.client.get(VIRTUAL_MACHINE_INSTANCE, namespace, name)
        others = [c for c in vmi["status"].get("conditions", []) if c["type"] != kind]
        made = {"type": kind, "status": status, "reason": reason, "lastTransitionTime": now()}
        await self.client.patch(VIRTUAL_MACHINE_INSTANCE, namespace, name, {"status": {"conditions": [*others, made]}})

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            for obj in [o for i in self._informers.values() for o in i.objects()]:
                try:
                    await getattr(self, f"_{obj['kind']}")(obj)
                except ApiError as error:
                    if error.code == 404:
                        continue
                    self._changed.set()  # a lost race: look again
            await asyncio.sleep(0)

    async def _patch(self, resource: Resource, obj: Object, patch: Object) -> None:
        metadata = obj["metadata"]
        guarded = {**patch, "metadata": {**patch.get("metadata", {}), "resourceVersion": metadata["resourceVersion"]}}
        await self.client.patch(resource, metadata.get("namespace"), metadata["name"], guarded)

    async def _phase(self, vmi: Object, phase: str) -> None:
        ready = phase == "Running"
        condition = {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": now()}
        if not ready:
            condition["reason"] = "GuestNotRunning"
        others = [c for c in vmi["status"].get("conditions", []) if c["type"] != "Ready"]
        stamps = [*vmi["status"]["phaseTransitionTimestamps"], {"phase": phase, "phaseTransitionTimestamp": now()}]
        await self._patch(
            VIRTUAL_MACHINE_INSTANCE,
            vmi,
            {"status": {"phase": phase, "conditions": [*others, condition], "phaseTransitionTimestamps": stamps}},
        )

    async def _VirtualMachineInstance(self, vmi: Object) -> None:
        metadata, status = vmi["metadata"], vmi.get("status", {})
        if status.get("nodeName") != self.host:
            return
        if metadata.get("deletionTimestamp"):
            if metadata["name"] not in self.hold_shutdown and FINALIZER in metadata.get("finalizers", []):
                kept = [f for f in metadata["finalizers"] if f != FINALIZER]
                await self._patch(VIRTUAL_MACHINE_INSTANCE, vmi, {"metadata": {"finalizers": kept}})
        elif status.get("phase") == "Scheduled":
            fails = metadata["name"] in self.fail_starts
            self.started.append(metadata["uid"])
            await self._phase(vmi, "Failed" if fails else "Running")

    async def _PersistentVolumeClaim(self, claim: Object) -> None:
        metadata = claim["metadata"]
        notes = metadata.get("annotations", {})
        name = metadata["name"]
        if notes.get("volume.kubernetes.io/selected-node") != self.host or metadata.get("deletionTimestamp"):
            return
        new = {"stead.io/volume-handle": f"pool-of-{self.host}/{metadata['uid']}"}
        if "stead.io/source" in notes:
            transfer = {"phase": "Succeeded", "progress": "100.0%", "restarts": 0, "reason": "", "message": ""}
            if name in self.fail_transfers:
                reason, message = self.fail_transfers[name]
                phase = "Failed" if reason == "ChecksumError" else "Running"
                transfer |= {"phase": phase, "restarts": 1, "reason": reason, "message": message, "progress": "N/A"}
            elif name in self.hold_transfers:
                transfer |= {"phase": "Running", "progress": "42.10%"}
            new["stead.io/transfer"] = json.dumps(transfer)
        if any(notes.get(k) != v for k, v in new.items()):
            await self._patch(PERSISTENT_VOLUME_CLAIM, claim, {"metadata": {"annotations": new}})

    async def _PersistentVolume(self, volume: Object) -> None:
        metadata = volume["metadata"]
        if metadata.get("deletionTimestamp") and "stead.io/volume" in metadata.get("finalizers", []):
            kept = [f for f in metadata["finalizers"] if f != "stead.io/volume"]
            await self._patch(PERSISTENT_VOLUME, volume, {"metadata": {"finalizers": kept}})

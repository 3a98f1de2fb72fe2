"""What a new installation is given: namespaces, the KubeVirt and CDI objects, the storage class, the catalogue,
roles.

Called once at each start by `controllers.start`, before the controllers. Idempotent: what exists is left as its owner
changed it, but for shipped instancetypes, preferences and roles, which follow the release they came with. An object
that an administrator deleted comes back at the next start only if it is a shipped one of those.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog

from stead.client.contract import Client
from stead.controllers.classes import local_class
from stead.controllers.conditions import condition, merge_conditions, status_of, text_from_time
from stead.controllers.volume_snapshots import local_snapshot_class
from stead.controllers.writes import create_if_absent, guarded_patch, read, write_status
from stead.kinds import catalogue
from stead.kinds.register import (
    CDI,
    CDI_CONFIG,
    KUBEVIRT,
    NAMESPACE,
    STORAGE_CLASS,
    VOLUME_SNAPSHOT_CLASS,
    resource_for,
)
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError

log = structlog.get_logger(__name__)

Object = dict[str, Any]

NAMESPACES = (
    "default",
    "kube-system",
    "kube-public",
    "kube-node-lease",
    "kubevirt",
    "kubevirt-os-images",
    "cdi",
)
#: how many shipped objects are written at a time
PARALLEL = 16
#: what we say we are to clients that ask for KubeVirt's and CDI's version
KUBEVIRT_VERSION, CDI_VERSION = "v1.8.4", "v1.63.1"


async def bootstrap(client: Client, now: Any, *, roles: Sequence[Object] = ()) -> None:
    """Create what is missing, refresh what is shipped. `now`: a function giving the time; `roles`: RBAC objects."""
    for name in NAMESPACES:
        await create_if_absent(client, NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    await _kubevirt(client, text_from_time(now()))
    await _cdi(client, text_from_time(now()))
    await create_if_absent(client, STORAGE_CLASS, local_class())
    await create_if_absent(client, VOLUME_SNAPSHOT_CLASS, local_snapshot_class())
    slots = asyncio.Semaphore(PARALLEL)  # the store commits concurrent writes together

    async def ship(shipped: Object) -> None:
        async with slots:
            await refresh(client, _resource_of(shipped), shipped)

    await asyncio.gather(
        *(ship(s) for s in [*roles, *catalogue.cluster_instancetypes(), *catalogue.cluster_preferences()])
    )


def _resource_of(obj: Object) -> Resource:
    group = obj["apiVersion"].rpartition("/")[0]
    return resource_for(obj["kind"], group)


async def refresh(client: Client, resource: Resource, wanted: Object) -> None:
    """Create `wanted`, or bring labels and content of what exists to it. One that is refused is logged and left."""
    try:
        await _refresh(client, resource, wanted)
    except ApiError as error:
        if error.code >= 500:
            raise
        name = wanted["metadata"]["name"]
        log.warning("shipped object not refreshed", kind=resource.kind, name=name, error=str(error))


async def _refresh(client: Client, resource: Resource, wanted: Object) -> None:
    metadata = wanted["metadata"]
    known = await read(client, resource, metadata.get("namespace"), metadata["name"])
    if known is None:
        await create_if_absent(client, resource, wanted)
        return
    steps: list[Object] = []
    for field, value in wanted.items():
        if field not in ("apiVersion", "kind", "metadata", "status") and known.get(field) != value:
            steps.append({"op": "add", "path": f"/{field}", "value": value})
    labels = {**(known["metadata"].get("labels") or {}), **(metadata.get("labels") or {})}
    if labels != (known["metadata"].get("labels") or {}):
        steps.append({"op": "add", "path": "/metadata/labels", "value": labels})
    if steps:
        await guarded_patch(client, resource, known, steps)


async def _kubevirt(client: Client, now: str) -> None:
    made = {
        "apiVersion": KUBEVIRT.api_version,
        "kind": KUBEVIRT.kind,
        "metadata": {"namespace": "kubevirt", "name": "kubevirt"},
        # A machine cannot be bridged to the pod network here: say so at once, not when it starts.
        "spec": {
            "configuration": {
                "network": {
                    "defaultNetworkInterface": "masquerade",
                    "permitBridgeInterfaceOnPodNetwork": False,
                }
            }
        },
    }
    await create_if_absent(client, KUBEVIRT, made)
    known = await client.get(KUBEVIRT, "kubevirt", "kubevirt")
    wanted = [
        condition("Available", "True", "AllComponentsReady", "All components are ready."),
        condition("Progressing", "False", "AllComponentsReady", "All components are ready."),
        condition("Degraded", "False", "AllComponentsReady", "All components are ready."),
        condition("Created", "True", "AllResourcesCreated", "All resources were created."),
    ]
    status = {
        **status_of(known),
        "phase": "Deployed",
        "conditions": merge_conditions(status_of(known).get("conditions"), wanted, now),
        "operatorVersion": KUBEVIRT_VERSION,
        "observedKubeVirtVersion": KUBEVIRT_VERSION,
        "targetKubeVirtVersion": KUBEVIRT_VERSION,
        "defaultArchitecture": "amd64",
        "observedGeneration": known["metadata"].get("generation", 1),
    }
    await write_status(client, KUBEVIRT, known, status)


async def _cdi(client: Client, now: str) -> None:
    made = {"apiVersion": CDI.api_version, "kind": CDI.kind, "metadata": {"name": "cdi"}, "spec": {}}
    await create_if_absent(client, CDI, made)
    known = await client.get(CDI, None, "cdi")
    wanted = [
        condition("Available", "True", "DeployCompleted", "Deployment Completed"),
        condition("Progressing", "False"),
        condition("Degraded", "False"),
    ]
    versions = dict.fromkeys(("operatorVersion", "observedVersion", "targetVersion"), CDI_VERSION)
    conditions = merge_conditions(status_of(known).get("conditions"), wanted, now)
    await write_status(
        client, CDI, known, {**status_of(known), **versions, "phase": "Deployed", "conditions": conditions}
    )
    config = {
        "apiVersion": CDI_CONFIG.api_version,
        "kind": CDI_CONFIG.kind,
        "metadata": {"name": "config"},
        "spec": {"featureGates": ["HonorWaitForFirstConsumer"]},
    }
    await create_if_absent(client, CDI_CONFIG, config)

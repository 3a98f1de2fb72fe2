"""The volume controllers of rungs 1 and 2: which host holds a claim's volume, binding, release, size.

Started by `controllers.start` (on rung 3 the CSI side-cars and the binder do this). Sole writer of PersistentVolume
objects (but for the agent's finalizer `stead.io/volume`) and of PersistentVolumeClaim spec.volumeName and status. The
agent of the chosen host makes the volume and reports `stead.io/volume-handle`; then the claim is bound. Names of
annotations and conditions are Kubernetes'.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from stead.client.informer import Key, key_of
from stead.controllers import placement, volume_needs
from stead.controllers.conditions import (
    annotations_of,
    condition,
    is_condition,
    is_deleting,
    labels_of,
    merge_conditions,
    spec_of,
    status_of,
    text_from_time,
)
from stead.controllers.disk_source import IMMEDIATE, PVC_PROTECTION, default_class, requested
from stead.controllers.instance import claims_used
from stead.controllers.runner import Controller, Source, World, own_key
from stead.controllers.volume_snapshots import HOST as SNAPSHOT_HOST
from stead.controllers.writes import (
    annotation_steps,
    create_if_absent,
    delete_if_there,
    finalizer_steps,
    guarded_patch,
    read,
    write_status,
)
from stead.kinds.register import (
    NODE,
    PERSISTENT_VOLUME,
    PERSISTENT_VOLUME_CLAIM,
    STORAGE_CLASS,
    VIRTUAL_MACHINE_INSTANCE,
    VOLUME_SNAPSHOT,
)
from stead.kube.quantity import parse

Object = dict[str, Any]

VOLUME_FINALIZER = "stead.io/volume"
BOUND_BY, BIND_COMPLETED = "pv.kubernetes.io/bound-by-controller", "pv.kubernetes.io/bind-completed"
#: CDI's: a claim that waits for an upload; whether its server is ready; the phase of the work
UPLOAD_TARGET = "cdi.kubevirt.io/storage.upload.target"
POD_READY = "cdi.kubevirt.io/storage.pod.ready"
POD_PHASE = "cdi.kubevirt.io/storage.pod.phase"
PROVISIONER_ANNOTATION = "volume.kubernetes.io/storage-provisioner"
RETRY_SECONDS = 15.0


class Task(msgspec.Struct, frozen=True):
    """What a claim needs next. `host` for "select"; `message` for "stuck"."""

    action: Literal["none", "wait", "select", "provision", "bind", "status", "stuck"]
    host: str = ""
    message: str = ""


def choose_host(pool: str, source_host: str, hosts: Iterable[Object], load: dict[str, int]) -> tuple[str, str]:
    """(host, "") for a new volume, or ("", why not). A clone goes where its source is."""
    able = []
    reasons = []
    for host in hosts:
        name = host["metadata"]["name"]
        if source_host and name != source_host:
            continue
        if f"pool.stead.io/{pool}" not in labels_of(host):
            reasons.append(f"{name}: host has no pool {pool}")
        elif not is_condition(host, "Ready"):
            reasons.append(f"{name}: host is not ready")
        elif spec_of(host).get("unschedulable") and not source_host:
            reasons.append(f"{name}: host is cordoned")
        else:
            able.append(name)
    if able:
        return min(able, key=lambda n: (load.get(n, 0), n)), ""
    return "", "; ".join(sorted(reasons)) or (f"host {source_host} is not registered" if source_host else "no host")


def volume_name(claim: Object) -> str:
    """Name of the PersistentVolume made for a claim."""
    return f"pvc-{claim['metadata']['uid']}"


def build_volume(claim: Object, storage_class: Object, host: str) -> Object:
    """The PersistentVolume for what the agent made."""
    spec, metadata = spec_of(claim), claim["metadata"]
    match = {"key": placement.HOSTNAME_LABEL, "operator": "In", "values": [host]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": volume_name(claim),
            "annotations": {"pv.kubernetes.io/provisioned-by": volume_needs.PROVISIONER},
            "finalizers": [VOLUME_FINALIZER, "kubernetes.io/pv-protection"],
        },
        "spec": {
            "capacity": {"storage": requested(claim)},
            "accessModes": spec.get("accessModes") or ["ReadWriteOnce"],
            "volumeMode": spec.get("volumeMode") or "Filesystem",
            "persistentVolumeReclaimPolicy": storage_class.get("reclaimPolicy") or "Delete",
            "storageClassName": spec.get("storageClassName") or "",
            "csi": {
                "driver": volume_needs.PROVISIONER,
                "volumeHandle": annotations_of(claim)[volume_needs.HANDLE],
                "volumeAttributes": {"pool": (storage_class.get("parameters") or {}).get("pool", "default")},
            },
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [match]}]}},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        },
    }


def cdi_annotations(claim: Object) -> dict[str, str | None]:
    """What CDI's clients look for on a claim that is being filled (`virtctl image-upload` waits for these): the phase
    of the work, as that of CDI's pod, and whether an upload may begin. A claim that asks for an upload becomes one.
    """
    found = annotations_of(claim)
    if volume_needs.SOURCE not in found:
        if UPLOAD_TARGET not in found or volume_needs.SELECTED_NODE in found:
            return {}
        return {volume_needs.SOURCE: '{"kind":"upload"}'}
    phase = str(volume_needs.transfer_of(claim).get("phase") or "Pending")
    wanted: dict[str, str | None] = {POD_PHASE: phase}
    if UPLOAD_TARGET in found:
        ready = volume_needs.HANDLE in found and phase in ("Pending", "Running")
        wanted |= {POD_READY: "true" if ready else "false", POD_PHASE: "Running" if ready else phase}
    return wanted


def claim_status(claim: Object, volume: Object, now: str) -> Object:
    """The status of a bound claim; with a resize under way while more is asked for than the volume has."""
    status = dict(status_of(claim))
    held = str((spec_of(volume).get("capacity") or {}).get("storage", ""))
    known = str((status.get("capacity") or {}).get("storage", ""))
    asked = requested(claim)
    grown = is_grown(claim)
    size = asked if grown and asked else known or held
    status |= {
        "phase": "Bound",
        "accessModes": spec_of(volume).get("accessModes") or [],
        "capacity": {"storage": size},
    }
    wanted = []
    if asked and size and parse(asked) > parse(size):
        wanted = [condition("Resizing", "True", "", f"waiting for the host to grow the volume to {asked}")]
    dated = merge_conditions(status.get("conditions"), wanted, now)
    if dated:
        status["conditions"] = dated
    else:
        status.pop("conditions", None)
    return status


def is_grown(claim: Object) -> bool:
    """Whether the agent reports that the volume is at least as large as the claim asks."""
    size = volume_needs.transfer_of(claim).get("virtualSize")
    asked = requested(claim)
    return bool(asked) and isinstance(size, int) and size >= int(parse(asked))


def populated_from(claim: Object) -> dict[str, str | None]:
    """The content of a claim that names a snapshot of its namespace as its data source."""
    spec, found = spec_of(claim), annotations_of(claim)
    named = spec.get("dataSourceRef") or spec.get("dataSource") or {}
    if named.get("kind") != VOLUME_SNAPSHOT.kind or volume_needs.SOURCE in found or volume_needs.SELECTED_NODE in found:
        return {}
    source = {"kind": "snapshot", "namespace": claim["metadata"]["namespace"], "name": named.get("name", "")}
    return {volume_needs.SOURCE: msgspec.json.encode(source).decode()}


class Volumes:
    """The controller's hands: one controller for claims, one for volumes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._client = world.client
        of = world.informers.of
        self._claims = of(PERSISTENT_VOLUME_CLAIM)
        self._volumes = of(PERSISTENT_VOLUME)
        self._classes = of(STORAGE_CLASS)
        self._nodes = of(NODE)
        self._snapshots = of(VOLUME_SNAPSHOT)
        self._vmis = of(VIRTUAL_MACHINE_INSTANCE)
        self._vmis.add_index("claim", claims_used)
        self._claims.add_index("unselected", lambda c: [] if _is_placed(c) else ["yes"])
        self._volumes.add_index("claim", _claim_of)
        self._told: dict[Key, str] = {}

    def controllers(self) -> list[Controller]:
        """The values that `run_controller` runs."""
        unselected = [
            Source(self._nodes, lambda _: [key_of(c) for c in self._claims.by_index("unselected", "yes")]),
            Source(self._classes, lambda _: [key_of(c) for c in self._claims.by_index("unselected", "yes")]),
            Source(self._snapshots, lambda _: [key_of(c) for c in self._claims.by_index("unselected", "yes")]),
        ]
        of_volume = Source(self._volumes, lambda v: [Key(*c.split("/", 1)) for c in _claim_of(v)])
        of_users = Source(self._vmis, lambda v: [Key(*c.split("/", 1)) for c in claims_used(v)])
        claims = (Source(self._claims, own_key), of_volume, of_users, *unselected)
        volumes = (
            Source(self._volumes, own_key),
            Source(self._claims, lambda c: [Key("", v)] if (v := spec_of(c).get("volumeName")) else []),
        )
        return [
            Controller("claim", self.reconcile_claim, claims, workers=2),
            Controller("volume", self.reconcile_volume, volumes, workers=2),
        ]

    # claims ------------------------------------------------------------------------------------------------------

    async def reconcile_claim(self, key: Key) -> float | None:
        """Bring one claim nearer to Bound, or let it go."""
        claim = self._claims.get(*key)
        if claim is None:
            self._told.pop(key, None)
            return None
        if is_deleting(claim):
            return await self._let_go(claim)
        marks = cdi_annotations(claim)
        marks |= populated_from(claim)
        told = annotation_steps(claim, marks) if marks else []
        if told:
            await guarded_patch(self._client, PERSISTENT_VOLUME_CLAIM, claim, told)
            return None
        task = self.decide(claim)
        if task.action == "select":
            annotations: dict[str, str | None] = {
                volume_needs.SELECTED_NODE: task.host,
                PROVISIONER_ANNOTATION: volume_needs.PROVISIONER,
            }
            steps = annotation_steps(claim, annotations) + finalizer_steps(claim, add=PVC_PROTECTION)
            if not spec_of(claim).get("storageClassName"):
                found = default_class(self._classes.objects(), virt=False)
                name = found["metadata"]["name"] if found else ""
                steps.append({"op": "add", "path": "/spec/storageClassName", "value": name})
            await guarded_patch(self._client, PERSISTENT_VOLUME_CLAIM, claim, steps)
        elif task.action == "provision":
            await self._provision(claim)
        elif task.action == "bind":
            await self._bind(claim)
        elif task.action == "status":
            await self._write_claim_status(claim)
        elif task.action == "stuck":
            if self._told.get(key) != task.message:
                self._told[key] = task.message
                self._world.recorder.event(claim, "Warning", "ProvisioningFailed", task.message)
            return RETRY_SECONDS
        return None

    def decide(self, claim: Object) -> Task:
        """What this claim needs next."""
        spec, annotations = spec_of(claim), annotations_of(claim)
        if spec.get("volumeName"):
            volume = self._volumes.get(None, spec["volumeName"])
            if volume is None:
                lost = status_of(claim).get("phase") == "Bound"
                return Task("status") if lost else Task("wait")
            return Task("status")
        storage_class = self._class_of(claim)
        if storage_class is None or storage_class.get("provisioner") != volume_needs.PROVISIONER:
            return Task("wait")
        if volume_needs.HANDLE in annotations:
            known = self._volumes.get(None, volume_name(claim)) is not None
            return Task("bind") if known else Task("provision")
        if volume_needs.SELECTED_NODE in annotations:
            return Task("wait")
        if storage_class.get("volumeBindingMode") == "WaitForFirstConsumer" and IMMEDIATE not in annotations:
            return Task("wait")
        if missing := self._missing_snapshot(claim):
            return Task("stuck", message=missing)
        pool = (storage_class.get("parameters") or {}).get("pool", "default")
        host, why = choose_host(pool, self._source_host(claim), self._nodes.objects(), self._load())
        return Task("select", host=host) if host else Task("stuck", message=why)

    def _missing_snapshot(self, claim: Object) -> str:
        """Why the snapshot that a claim is made from cannot be used yet; "" if it can, or there is none."""
        named = spec_of(claim).get("dataSourceRef") or spec_of(claim).get("dataSource") or {}
        if named.get("kind") != VOLUME_SNAPSHOT.kind:
            return ""
        namespace, name = claim["metadata"]["namespace"], named.get("name", "")
        if named.get("namespace") not in (None, "", namespace):
            return f"snapshot {named['namespace']}/{name}: a claim is made from snapshots of its own namespace only"
        found = self._snapshots.get(namespace, name)
        if found is None or not status_of(found).get("readyToUse"):
            return f"snapshot {namespace}/{name} is not ready to use"
        return ""

    def _class_of(self, claim: Object) -> Object | None:
        name = spec_of(claim).get("storageClassName")
        if name is None:
            return default_class(self._classes.objects(), virt=False)
        return self._classes.get(None, name) if name else None

    def _source_host(self, claim: Object) -> str:
        """The host that holds the source of a clone; "" if it is no clone or the source may be anywhere."""
        try:
            source = msgspec.json.decode(annotations_of(claim).get(volume_needs.SOURCE, "{}"))
        except msgspec.DecodeError:
            return ""
        if source.get("kind") == "snapshot":
            kept = self._snapshots.get(source.get("namespace"), source.get("name", ""))
            return annotations_of(kept).get(SNAPSHOT_HOST, "")
        if source.get("kind") != "pvc":
            return ""
        found = self._claims.get(source.get("namespace"), source.get("name", ""))
        return annotations_of(found).get(volume_needs.SELECTED_NODE, "")

    def _load(self) -> dict[str, int]:
        load: dict[str, int] = {}
        for claim in self._claims.objects():
            host = annotations_of(claim).get(volume_needs.SELECTED_NODE)
            if host:
                load[host] = load.get(host, 0) + 1
        return load

    async def _provision(self, claim: Object) -> None:
        storage_class = self._class_of(claim) or {}
        host = annotations_of(claim).get(volume_needs.SELECTED_NODE, "")
        await create_if_absent(self._client, PERSISTENT_VOLUME, build_volume(claim, storage_class, host))
        await self._bind(claim)

    async def _bind(self, claim: Object) -> None:
        name = volume_name(claim)
        done: dict[str, str | None] = {BOUND_BY: "yes", BIND_COMPLETED: "yes"}
        steps = [{"op": "add", "path": "/spec/volumeName", "value": name}, *annotation_steps(claim, done)]
        await guarded_patch(self._client, PERSISTENT_VOLUME_CLAIM, claim, steps)
        self._world.recorder.event(claim, "Normal", "ProvisioningSucceeded", f"Successfully provisioned volume {name}")

    async def _write_claim_status(self, claim: Object) -> None:
        volume = self._volumes.get(None, spec_of(claim)["volumeName"])
        now = text_from_time(datetime.now(UTC))
        if volume is None:
            if status_of(claim).get("phase") != "Lost":
                self._world.recorder.event(claim, "Warning", "ClaimLost", "Bound claim has lost its PersistentVolume")
            await write_status(
                self._client, PERSISTENT_VOLUME_CLAIM, claim, {**status_of(claim), "phase": "Lost", "capacity": {}}
            )
            return
        holder = spec_of(volume).get("claimRef") or {}
        if holder.get("uid") not in (None, "", claim["metadata"]["uid"]):
            return  # the volume belongs to another claim
        await write_status(self._client, PERSISTENT_VOLUME_CLAIM, claim, claim_status(claim, volume, now))

    async def _let_go(self, claim: Object) -> float | None:
        """Remove the protection once no instance uses the claim."""
        metadata = claim["metadata"]
        if self._vmis.by_index("claim", f"{metadata['namespace']}/{metadata['name']}"):
            return None
        steps = finalizer_steps(claim, remove=PVC_PROTECTION)
        if steps:
            await guarded_patch(self._client, PERSISTENT_VOLUME_CLAIM, claim, steps)
        return None

    # volumes -----------------------------------------------------------------------------------------------------

    async def reconcile_volume(self, key: Key) -> float | None:
        """Keep a volume's phase and size true; delete or release it when its claim is gone."""
        volume = self._volumes.get(*key)
        if volume is None:
            return None
        reference = spec_of(volume).get("claimRef") or {}
        claim = self._claims.get(reference.get("namespace"), reference.get("name", "")) if reference else None
        held = claim is not None and claim["metadata"]["uid"] == reference.get("uid", claim["metadata"]["uid"])
        if is_deleting(volume):
            steps = [] if held else finalizer_steps(volume, remove="kubernetes.io/pv-protection")
            if steps:
                await guarded_patch(self._client, PERSISTENT_VOLUME, volume, steps)
            return None
        if reference.get("uid") and not held:
            return await self._release(volume)
        phase = "Available" if not reference else "Bound" if held else "Available"
        if held and claim is not None and self._must_grow(volume, claim):
            step = {"op": "add", "path": "/spec/capacity", "value": {"storage": requested(claim)}}
            await guarded_patch(self._client, PERSISTENT_VOLUME, volume, [step])
            return None
        if status_of(volume).get("phase") != phase:
            await write_status(self._client, PERSISTENT_VOLUME, volume, {**status_of(volume), "phase": phase})
        return None

    def _must_grow(self, volume: Object, claim: Object) -> bool:
        held = (spec_of(volume).get("capacity") or {}).get("storage")
        return bool(held) and is_grown(claim) and parse(requested(claim)) > parse(held)

    async def _release(self, volume: Object) -> float | None:
        """The claim is gone: delete the volume (its host's agent removes the data), or keep it as Released."""
        reference = spec_of(volume)["claimRef"]
        live = await read(self._client, PERSISTENT_VOLUME_CLAIM, reference["namespace"], reference["name"])
        if live is not None and live["metadata"]["uid"] == reference.get("uid"):
            return 1.0  # our informer is behind
        if spec_of(volume).get("persistentVolumeReclaimPolicy") == "Delete" and _is_ours(volume):
            await delete_if_there(self._client, PERSISTENT_VOLUME, volume)
            return None
        if status_of(volume).get("phase") != "Released":
            await write_status(self._client, PERSISTENT_VOLUME, volume, {**status_of(volume), "phase": "Released"})
        return None


def _is_ours(volume: Object) -> bool:
    return (spec_of(volume).get("csi") or {}).get("driver") == volume_needs.PROVISIONER


def _is_placed(claim: Object) -> bool:
    return bool(spec_of(claim).get("volumeName")) or volume_needs.SELECTED_NODE in annotations_of(claim)


def _claim_of(volume: Object) -> list[str]:
    reference = spec_of(volume).get("claimRef") or {}
    return [f"{reference['namespace']}/{reference['name']}"] if reference.get("name") else []

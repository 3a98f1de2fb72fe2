"""The controller of VirtualMachineExports: a token, a time of life, and links once the disks stand still.

Started by `controllers.start`. Sole writer of VirtualMachineExport.status and of the token Secret that it makes. The
bytes are served by the plane (`server/exports.py`) from the host's agent: a snapshot's disks are read where they are,
nothing is copied. Phases, conditions and reasons are KubeVirt's.
"""

from __future__ import annotations

import base64
import secrets
import string
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from stead.client.informer import Key
from stead.controllers import volume_needs
from stead.controllers.conditions import (
    annotations_of,
    condition,
    is_deleting,
    merge_conditions,
    owner_reference,
    spec_of,
    status_of,
    text_from_time,
    time_from_text,
)
from stead.controllers.instance import claims_used
from stead.controllers.machine_status import is_final
from stead.controllers.runner import Controller, Source, World, own_key
from stead.controllers.writes import create_if_absent, delete_if_there, read, write_status
from stead.kinds import exported
from stead.kinds.exported import Disk
from stead.kinds.register import (
    MACHINE_EXPORT,
    MACHINE_SNAPSHOT,
    MACHINE_SNAPSHOT_CONTENT,
    PERSISTENT_VOLUME_CLAIM,
    SECRET,
    VIRTUAL_MACHINE,
    VIRTUAL_MACHINE_INSTANCE,
)
from stead.kube.duration import seconds_from_duration

Object = dict[str, Any]

DEFAULT_SECONDS = 2 * 3600.0
LOOK_SECONDS = 10.0
_TOKEN_LENGTH = 20


class View(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision about one export may look at."""

    export: Object
    source: Object | None
    content: Object | None = None
    #: claims by name, and those that a running instance uses
    claims: dict[str, Object] = {}
    in_use: frozenset[str] = frozenset()
    #: an instance of the source machine runs
    runs: bool = False
    url: str
    ca: str
    now: datetime


def token_name(export: Object) -> str:
    """Name of the Secret with the token."""
    return str(spec_of(export).get("tokenSecretRef") or f"export-token-{export['metadata']['name']}")


def expires_at(export: Object) -> datetime:
    """When the export goes."""
    text = spec_of(export).get("ttlDuration")
    seconds = DEFAULT_SECONDS if text is None else seconds_from_duration(text)
    return time_from_text(export["metadata"]["creationTimestamp"]) + timedelta(seconds=seconds)


def decide_phase(view: View) -> tuple[str, str, str]:
    """(phase, reason, message)."""
    export = view.export
    source = spec_of(export).get("source") or {}
    kind, name = str(source.get("kind")), str(source.get("name"))
    if kind not in (PERSISTENT_VOLUME_CLAIM.kind, VIRTUAL_MACHINE.kind, MACHINE_SNAPSHOT.kind):
        return "Pending", "Unsupported", f"spec.source.kind: {kind} cannot be exported yet"
    if view.source is None:
        return "Pending", "NotFound", f"{kind} {name} does not exist"
    disks = exported.disks_of(export, view.source, view.content)
    if kind == MACHINE_SNAPSHOT.kind:
        if not status_of(view.source).get("readyToUse") or view.content is None:
            return "Pending", "VMSnapshotNotReady", f"VirtualMachineSnapshot {name} is not ready"
    else:
        for disk in disks:
            if trouble := _claim_trouble(view, disk):
                return "Pending", *trouble
        if view.runs:
            return "Pending", "InUse", f"VirtualMachine {name} runs"
    if not disks:
        return "Skipped", "NoVolumeToExport", f"{kind} {name} has no volume that can be exported"
    return "Ready", "PodReady", ""


def _claim_trouble(view: View, disk: Disk) -> tuple[str, str] | None:
    claim = view.claims.get(disk.held_by)
    if claim is None or is_deleting(claim):
        return "PVCNotFound", f"pvc {disk.held_by} not found"
    filled = volume_needs.transfer_of(claim).get("phase") == "Succeeded"
    pending = volume_needs.SOURCE in annotations_of(claim) and not filled
    if status_of(claim).get("phase") != "Bound" or pending:
        return "PVCPending", f"pvc {disk.held_by} is not bound or not populated"
    if disk.held_by in view.in_use:
        return "InUse", f"pvc {disk.held_by} is in use"
    return None


def links_of(view: View, disks: list[Disk]) -> Object:
    """Where everything is. Our server is the same from inside and outside."""

    def url(rest: str) -> str:
        return view.url + exported.path_of(view.export, rest)

    volumes = [
        {
            "name": disk.name,
            "formats": [{"format": f, "url": url(f"volumes/{disk.name}/{file}")} for f, file in exported.DISKS.items()],
        }
        for disk in disks
    ]
    link: Object = {"cert": view.ca, "volumes": volumes}
    if spec_of(view.export)["source"]["kind"] != PERSISTENT_VOLUME_CLAIM.kind:
        link["manifests"] = [{"type": t, "url": url(f"external/{p}")} for t, p in exported.MANIFESTS.items()]
    return {"internal": link, "external": link}


def decide_status(view: View) -> Object:
    """The export's whole status."""
    export, status = view.export, dict(status_of(view.export))
    phase, reason, message = decide_phase(view)
    status |= {
        "phase": phase,
        "tokenSecretRef": token_name(export),
        "serviceName": f"virt-export-{export['metadata']['name']}",
        "ttlExpirationTime": text_from_time(expires_at(export)),
    }
    if spec_of(export).get("source", {}).get("kind") == VIRTUAL_MACHINE.kind:
        status["virtualMachineName"] = spec_of(export)["source"]["name"]
    status.pop("links", None)
    if phase == "Ready":
        status["links"] = links_of(view, exported.disks_of(export, view.source, view.content))
    ready = "True" if phase == "Ready" else "False"
    wanted = [
        condition("Ready", ready, reason, message),
        condition("PVCReady", ready, "Bound" if phase == "Ready" else reason, message),
    ]
    status["conditions"] = merge_conditions(status.get("conditions"), wanted, text_from_time(view.now))
    return status


class Exports:
    """The controller's hands. `url` is where the server is reached; `ca` what vouches for it, PEM."""

    def __init__(
        self, world: World, *, url: str, ca: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._world = world
        self._client = world.client
        self._url, self._ca = url, ca
        self._clock = clock
        of = world.informers.of
        self._exports = of(MACHINE_EXPORT)
        self._snapshots = of(MACHINE_SNAPSHOT)
        self._contents = of(MACHINE_SNAPSHOT_CONTENT)
        self._claims = of(PERSISTENT_VOLUME_CLAIM)
        self._vms = of(VIRTUAL_MACHINE)
        self._vmis = of(VIRTUAL_MACHINE_INSTANCE)
        self._vmis.add_index("claim", claims_used)

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        watched = (self._snapshots, self._claims, self._vms, self._vmis)
        sources = (Source(self._exports, own_key), *(Source(informer, self._in_namespace) for informer in watched))
        return Controller("export", self.reconcile, sources, workers=1)

    def _in_namespace(self, obj: Object) -> list[Key]:
        namespace = obj["metadata"]["namespace"]
        return [Key(namespace, e["metadata"]["name"]) for e in self._exports.objects(namespace)]

    async def reconcile(self, key: Key) -> float | None:
        """Make the token, tell the status, and delete what has had its time."""
        export = self._exports.get(*key)
        if export is None or is_deleting(export):
            return None
        now = self._clock()
        left = (expires_at(export) - now).total_seconds()
        if left <= 0:
            await delete_if_there(self._client, MACHINE_EXPORT, export)
            return None
        await self._make_token(export)
        await write_status(self._client, MACHINE_EXPORT, export, decide_status(self._view(export, now)))
        return min(left, LOOK_SECONDS)

    async def _make_token(self, export: Object) -> None:
        namespace, name = export["metadata"]["namespace"], token_name(export)
        if await read(self._client, SECRET, namespace, name) is not None:
            return
        token = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(_TOKEN_LENGTH))
        metadata = {"namespace": namespace, "name": name, "ownerReferences": [owner_reference(export)]}
        made = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque"}
        made["data"] = {"token": base64.b64encode(token.encode()).decode()}
        await create_if_absent(self._client, SECRET, made)

    def _view(self, export: Object, now: datetime) -> View:
        namespace = export["metadata"]["namespace"]
        source = spec_of(export).get("source") or {}
        kind, name = source.get("kind"), str(source.get("name", ""))
        informers = {
            VIRTUAL_MACHINE.kind: self._vms,
            MACHINE_SNAPSHOT.kind: self._snapshots,
            PERSISTENT_VOLUME_CLAIM.kind: self._claims,
        }
        found = informers[kind].get(namespace, name) if kind in informers else None
        content_name = str(status_of(found).get("virtualMachineSnapshotContentName") or "")
        content = self._contents.get(namespace, content_name) if content_name else None
        names = [d.held_by for d in exported.disks_of(export, found, content)]
        used = [n for n in names if any(not is_final(v) for v in self._vmis.by_index("claim", f"{namespace}/{n}"))]
        vmi = self._vmis.get(namespace, name) if kind == VIRTUAL_MACHINE.kind else None
        return View(
            export=export,
            source=found,
            content=content,
            claims={n: c for n in names if (c := self._claims.get(namespace, n)) is not None},
            in_use=frozenset(used),
            runs=vmi is not None and not is_final(vmi),
            url=self._url,
            ca=self._ca,
            now=now,
        )

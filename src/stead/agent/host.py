"""This host as a Node: facts, capacity, conditions and labels, kept true by a heartbeat and a Lease.

One task (`HostReporter.run`), started by `agent.py`. The Node is created if absent, its labels and status are patched
when they change (status at least every five minutes, as kubelet does), the Lease is renewed every ten seconds. Losing
the API only means trying again. Shapes: core/v1 Node, coordination.k8s.io/v1 Lease; node labels are KubeVirt's.
"""

from __future__ import annotations

import asyncio
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import structlog

from stead import __version__
from stead.agent import topology
from stead.agent.events import now
from stead.agent.trouble import API_TROUBLE
from stead.agent.workshop import AgentSettings
from stead.client.contract import Client
from stead.hypervisor.contract import Capabilities
from stead.kinds import register
from stead.kube.errors import ApiError
from stead.kube.quantity import quantity_from_bytes

log = structlog.get_logger(__name__)

Object = dict[str, Any]

LEASE_SECONDS = 40
RENEW_SECONDS = 10.0
STATUS_SECONDS = 300.0
#: after a failure: soon at first, since plane and agent of one host start together
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 2.0
#: machines that one host takes (the capacity of KubeVirt's KVM device)
MACHINES = 1000
#: whether the host takes new machines, and what of that we have written ourselves
SCHEDULABLE, SCHEDULABLE_TOLD = "kubevirt.io/schedulable", "stead.io/schedulable"
#: kubelet's default thresholds: nodefs.available < 10 %
DISK_PRESSURE_FRACTION = 0.10

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "s390x": "s390x"}


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the host is. Sizes in bytes; `hugepages` maps page size to bytes reserved."""

    cpus: int
    memory: int
    hugepages: dict[int, int] = {}
    storage: int = 0
    storage_free: int = 0
    pressed: tuple[str, ...] = ()
    machine_id: str = ""
    system_uuid: str = ""
    boot_id: str = ""
    kernel: str = ""
    os_image: str = ""
    architecture: str = "amd64"
    bridges: tuple[str, ...] = ()
    numa: tuple[topology.NumaNode, ...] = ()


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def gather(folders: tuple[Path, ...], state_dir: Path) -> Facts:
    """Read the host's facts. Blocking, a few milliseconds."""
    meminfo = dict(line.split(":", 1) for line in _first_line("/proc/meminfo").splitlines() if ":" in line)
    found = os.statvfs(state_dir)
    release = dict(line.split("=", 1) for line in _first_line("/etc/os-release").splitlines() if "=" in line)
    return Facts(
        cpus=len(os.sched_getaffinity(0)),
        memory=int(meminfo.get("MemTotal", "0 kB").split()[0]) * 1024,
        hugepages=_hugepages(),
        storage=found.f_blocks * found.f_frsize,
        storage_free=found.f_bavail * found.f_frsize,
        pressed=tuple(str(folder) for folder in folders if _is_pressed(folder)),
        machine_id=_first_line("/etc/machine-id"),
        system_uuid=_first_line("/sys/class/dmi/id/product_uuid"),
        boot_id=_first_line("/proc/sys/kernel/random/boot_id"),
        kernel=platform.release(),
        os_image=release.get("PRETTY_NAME", "Linux").strip('"'),
        architecture=_ARCHITECTURES.get(platform.machine(), platform.machine()),
        bridges=topology.bridges(),
        numa=topology.numa_nodes(),
    )


def _is_pressed(folder: Path) -> bool:
    try:
        found = os.statvfs(folder)
    except OSError:
        return False
    return found.f_blocks > 0 and found.f_bavail / found.f_blocks < DISK_PRESSURE_FRACTION


def _hugepages(root: Path = Path("/sys/kernel/mm/hugepages")) -> dict[int, int]:
    pages = {}
    for folder in root.glob("hugepages-*kB"):
        size = int(folder.name.removeprefix("hugepages-").removesuffix("kB")) * 1024
        count = _first_line(str(folder / "nr_hugepages"))
        pages[size] = size * int(count or 0)
    return pages


def capacity_from(facts: Facts, capabilities: Capabilities | None) -> Object:
    """`status.capacity`: cpu, memory, hugepages, ephemeral storage, pods, and KubeVirt's device of the hypervisor."""
    capacity: Object = {
        "cpu": str(facts.cpus),
        "memory": str(quantity_from_bytes(facts.memory)),
        "ephemeral-storage": str(quantity_from_bytes(facts.storage)),
        "pods": str(MACHINES),
    }
    for size, total in sorted(facts.hugepages.items()):
        capacity[f"hugepages-{quantity_from_bytes(size)}"] = str(quantity_from_bytes(total))
    # One resource a bridge, as KubeVirt's bridge-marker has it: machines go where the bridge of their network is.
    capacity |= {f"bridge.network.kubevirt.io/{name}": str(MACHINES) for name in facts.bridges}
    # Placement counts machines by this device on every rung; under emulation it stands for a place, not for hardware.
    capacity["devices.kubevirt.io/kvm"] = str(MACHINES if capabilities is not None else 0)
    return capacity


def _condition(kind: str, on: bool, reason: str, message: str) -> Object:
    return {"type": kind, "status": "True" if on else "False", "reason": reason, "message": message}


def conditions_from(facts: Facts, capabilities: Capabilities | None, problem: str) -> list[Object]:
    """Ready and the pressures, without times."""
    ready = capabilities is not None and not problem
    ready_message = (
        "the agent and its hypervisor are ready" if ready else (problem or "the hypervisor has not been reached")
    )
    pressed = ", ".join(facts.pressed)
    return [
        _condition("MemoryPressure", False, "AgentHasSufficientMemory", "the host has memory available"),
        _condition(
            "DiskPressure", bool(facts.pressed), "AgentHasDiskPressure" if pressed else "AgentHasNoDiskPressure",
            f"less than 10 % free on {pressed}" if pressed else "storage has room",
        ),
        _condition("PIDPressure", False, "AgentHasSufficientPID", "the host has process ids available"),
        _condition("Ready", ready, "AgentReady" if ready else "HypervisorUnavailable", ready_message),
    ]  # fmt: skip


def _is_closed_by_others(label: str | None, told: str | None) -> bool:
    """Whether an administrator has closed the host to new machines: the label says so, and not because we did."""
    return label not in (None, "true") and label != told


def merge_conditions(present: list[Object], wanted: list[Object], moment: str) -> list[Object]:
    """Wanted conditions with times: the transition time stays while the status stays."""
    known = {c.get("type"): c for c in present}
    merged = []
    for condition in wanted:
        before = known.get(condition["type"], {})
        same = before.get("status") == condition["status"]
        since = before.get("lastTransitionTime", moment) if same else moment
        merged.append({**condition, "lastHeartbeatTime": moment, "lastTransitionTime": since})
    return merged


def labels_from(settings: AgentSettings, facts: Facts, capabilities: Capabilities | None) -> dict[str, str]:
    """Labels that placement and people select by."""
    labels = {
        "kubernetes.io/hostname": settings.host_name,
        "kubernetes.io/arch": facts.architecture,
        "kubernetes.io/os": "linux",
        SCHEDULABLE: "true" if capabilities is not None else "false",
        **{f"pool.stead.io/{name}": uid for name, uid in settings.pool_labels.items()},
    }
    if capabilities is not None:
        for prefix, names in (
            ("cpu-model.node.kubevirt.io", capabilities.cpu_models),
            ("cpu-model-migration.node.kubevirt.io", (*capabilities.cpu_models, capabilities.host_cpu_model)),
            ("cpu-feature.node.kubevirt.io", capabilities.cpu_features),
            ("host-model-cpu.node.kubevirt.io", (capabilities.host_cpu_model,)),
            ("host-model-required-features.node.kubevirt.io", capabilities.host_model_features),
            ("hyperv.node.kubevirt.io", capabilities.hyperv_features),
            ("machine-type.node.kubevirt.io", capabilities.machine_types),
            ("cpu-vendor.node.kubevirt.io", (capabilities.host_cpu_vendor,)),
            ("hypervisor.stead.io", (capabilities.driver,)),
        ):
            labels |= {f"{prefix}/{name}": "true" for name in names if _is_label(name)}
    return labels


def _is_label(text: str) -> bool:
    return (
        0 < len(text) <= 63
        and text[0].isalnum()
        and text[-1].isalnum()
        and all(c.isalnum() or c in "-_." for c in text)
    )


def status_from(settings: AgentSettings, facts: Facts, capabilities: Capabilities | None) -> Object:
    """`status` without conditions."""
    capacity = capacity_from(facts, capabilities)
    return {
        "addresses": [
            {"type": "InternalIP", "address": settings.agent_address},
            {"type": "Hostname", "address": settings.host_name},
        ],
        "capacity": capacity,
        "allocatable": dict(capacity),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": settings.agent_port}},
        "nodeInfo": {
            "machineID": facts.machine_id,
            "systemUUID": facts.system_uuid,
            "bootID": facts.boot_id,
            "kernelVersion": facts.kernel,
            "osImage": facts.os_image,
            "containerRuntimeVersion": f"stead://{capabilities.driver if capabilities else 'unknown'}",
            "kubeletVersion": f"v{__version__}+stead",
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": facts.architecture,
        },
    }


class HostReporter:
    """Keeps Node and Lease. `capabilities` and `problem` are set by `agent.py` as it learns them."""

    def __init__(self, client: Client, settings: AgentSettings) -> None:
        self._client = client
        self._settings = settings
        self._wake = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._reported: Object = {}
        self._reported_at = float("-inf")
        self.capabilities: Capabilities | None = None
        self.problem = ""

    def wake(self) -> None:
        """Report soon."""
        self._wake.set()

    async def run(self) -> None:
        """Heartbeat until cancelled."""
        retry = FIRST_RETRY_SECONDS
        while True:
            self._wake.clear()
            pause = RENEW_SECONDS
            try:
                async with asyncio.timeout(RENEW_SECONDS * 2):
                    await self.report()
                    await self._renew_lease()
                retry = FIRST_RETRY_SECONDS
            except API_TROUBLE as error:
                log.warning("the host could not be reported, trying again", error=str(error) or type(error).__name__)
                pause, retry = retry, min(LAST_RETRY_SECONDS, retry * 2)
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def report(self) -> None:
        """Make the Node as it should be, writing only what changed. Calls wait for each other."""
        async with self._one_at_a_time:
            await self._report()

    async def _report(self) -> None:
        settings = self._settings
        facts = await asyncio.to_thread(gather, settings.watched_folders, settings.state_dir)
        node = await self._node()
        labels = labels_from(settings, facts, self.capabilities)
        annotations = {}
        if self.capabilities is not None:
            annotations["stead.io/capabilities"] = msgspec.json.encode(
                self.capabilities, order="deterministic"
            ).decode()
        if facts.numa:
            annotations["stead.io/numa"] = msgspec.json.encode(facts.numa).decode()
        await self._write_metadata(node, labels, annotations)
        wanted = status_from(settings, facts, self.capabilities)
        conditions = conditions_from(facts, self.capabilities, self.problem)
        state: Object = {**wanted, "conditions": conditions}
        time = asyncio.get_running_loop().time()
        present = (node.get("status") or {}).get("conditions") or []
        shown = {c.get("type"): c.get("status") for c in present}
        is_shown = all(shown.get(c["type"]) == c["status"] for c in conditions)  # not when we were taken for silent
        if is_shown and state == self._reported and time - self._reported_at < STATUS_SECONDS:
            return
        body = {"status": {**wanted, "conditions": merge_conditions(present, conditions, now())}}
        await self._client.patch(register.NODE, None, settings.host_name, body, subresource="status")
        self._reported, self._reported_at = state, time

    async def _node(self) -> Object:
        name = self._settings.host_name
        try:
            return await self._client.get(register.NODE, None, name)
        except ApiError as error:
            if error.code != 404:
                raise
        self._reported = {}
        node: Object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {}}
        return await self._client.create(register.NODE, node)

    async def _write_metadata(self, node: Object, labels: dict[str, str], annotations: dict[str, str]) -> None:
        metadata = node["metadata"]
        have_labels, have_annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
        # Labels of ours that are no longer true go; those that an administrator has set stay.
        stale = {
            key: None
            for key in have_labels
            if (
                key.partition("/")[0].endswith(".node.kubevirt.io") or key.startswith(("pool.stead.io/", "hypervisor."))
            )
            and key not in labels
            and self.capabilities is not None
        }
        if _is_closed_by_others(have_labels.get(SCHEDULABLE), have_annotations.get(SCHEDULABLE_TOLD)):
            labels = {key: value for key, value in labels.items() if key != SCHEDULABLE}
        else:
            annotations = {**annotations, SCHEDULABLE_TOLD: labels[SCHEDULABLE]}
        missing = {k: v for k, v in labels.items() if have_labels.get(k) != v}
        told = {k: v for k, v in annotations.items() if have_annotations.get(k) != v}
        if stale or missing or told:
            body: Object = {"metadata": {"labels": {**missing, **stale}, "annotations": told}}
            await self._client.patch(register.NODE, None, self._settings.host_name, body)

    async def _renew_lease(self) -> None:
        name = self._settings.host_name
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        try:
            await self._client.patch(register.LEASE, "kube-node-lease", name, {"spec": {"renewTime": moment}})
        except ApiError as error:
            if error.code != 404:
                raise
            lease: Object = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": name, "namespace": "kube-node-lease"},
                "spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": moment},
            }
            await self._client.create(register.LEASE, lease)

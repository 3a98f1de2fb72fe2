"""Rules about devices that are neither disks nor interfaces: inputs, host devices, sound, watchdog, I/O threads…

Texts and the odd field paths (`spec.Sound`, `spec.HostDevices`) are KubeVirt's (recordings `reject-vmi-core`, `gates`).
`field` is the path of the spec. Pure.
"""

from __future__ import annotations

from stead.server.admission.cluster import Cluster
from stead.server.admission.contract import Json
from stead.server.admission.findings import NOT_SUPPORTED, REQUIRED, Findings

_POLICIES = ("shared", "auto", "supplementalPool")
_PANIC_MODELS = ("hyperv", "isa", "pvpanic")
_VIDEO_TYPES = {
    "amd64": ("vga", "cirrus", "virtio", "bochs", "ramfb", "qxl", "none"),
    "arm64": ("virtio", "ramfb", "none"),
    "s390x": ("virtio", "none"),
}


def check_inputs(field: str, spec: Json, findings: Findings) -> None:
    """Input devices: tablets on virtio or USB."""
    for index, entry in enumerate(spec["domain"]["devices"].get("inputs") or ()):
        here = f"{field}.domain.devices.inputs[{index}]"
        if entry.get("bus") not in (None, "", "virtio", "usb"):
            findings.add(f"{here}.bus", "Input device can have only virtio or usb bus.")
        if entry.get("type") not in (None, "", "tablet"):
            findings.add(f"{here}.type", "Input device can have only tablet type.")


def check_io_threads(field: str, spec: Json, findings: Findings) -> None:
    """The I/O thread policy and, for a pool, its size."""
    policy = spec["domain"].get("ioThreadsPolicy")
    if policy is None:
        return
    if policy not in _POLICIES:
        findings.add(f"{field}.domain.ioThreadsPolicy", f"Invalid IOThreadsPolicy ({policy})")
    count = (spec["domain"].get("ioThreads") or {}).get("supplementalPoolThreadCount") or 0
    if policy == "supplementalPool" and count < 1:
        text = "the number of iothreads needs to be set and positive for the dedicated policy"
        findings.add(f"{field}.domain.ioThreads.count", text)


def check_devices(field: str, spec: Json, cluster: Cluster, findings: Findings) -> None:
    """Everything else on the virtual board."""
    devices: Json = spec["domain"]["devices"]
    here = f"{field}.domain.devices"
    _check_passthrough(field, spec, cluster, findings)
    _check_filesystems(field, spec, cluster, findings)
    sound = devices.get("sound")
    if sound is not None:
        if sound.get("model") not in (None, "", "ich9", "ac97"):
            text = "Sound device type is not supported. Options: 'ich9' or 'ac97'"
            findings.add(f"{field}.Sound", text)
        if not sound.get("name"):
            findings.add(f"{field}.Sound", "Sound device requires a name field.")
    if devices.get("autoattachVSOCK") and not cluster.has("VSOCK"):
        findings.add(f"{here}.autoattachVSOCK", "VSOCK feature gate is not enabled in kubevirt-config")
    reserved = any((d.get("lun") or {}).get("reservation") for d in devices.get("disks") or ())
    if reserved and not cluster.persistent_reservation:
        text = "persistent reservation is not enabled in kubevirt config"
        findings.add(f"{here}.disks.luns.reservation", text)
    if devices.get("downwardMetrics") is not None and not cluster.has("DownwardMetrics"):
        text = "downwardMetrics virtio serial is not allowed: DownwardMetrics feature gate is not enabled"
        findings.add(f"{here}.downwardMetrics", text)
    for index, panic in enumerate(devices.get("panicDevices") or ()):
        model = panic.get("model")
        if model is not None and model not in _PANIC_MODELS:
            findings.add(f"{here}.panicDevices[{index}].model", f"invalid PanicDeviceModel({model})")
    video = (devices.get("video") or {}).get("type")
    architecture = str(spec.get("architecture") or cluster.architecture)
    if video and video not in _VIDEO_TYPES.get(architecture, ()):
        text = f"video model '{video}' is not supported on {architecture} architecture"
        findings.add(f"{here}.video.type", text)


def _check_filesystems(field: str, spec: Json, cluster: Cluster, findings: Findings) -> None:
    """Storage volumes may be shared by virtiofs only behind a gate; configuration volumes always."""
    if cluster.has("EnableVirtioFsStorageVolumes"):
        return
    storage = {
        v.get("name")
        for v in spec.get("volumes") or ()
        if v.get("persistentVolumeClaim") is not None or v.get("dataVolume") is not None
    }
    if any(f.get("name") in storage for f in spec["domain"]["devices"].get("filesystems") or ()):
        text = "virtiofs is not allowed: virtiofs feature gate is not enabled for PVC"
        findings.add(f"{field}.domain.devices.filesystems", text)


def _check_passthrough(field: str, spec: Json, cluster: Cluster, findings: Findings) -> None:
    devices: Json = spec["domain"]["devices"]
    if devices.get("hostDevices") and not cluster.has("HostDevices"):
        has_plain = any(not d.get("claimName") for d in devices["hostDevices"])
        if has_plain or not cluster.has("HostDevicesWithDRA"):
            text = "Host Devices feature gate is not enabled in kubevirt-config"
            findings.add(f"{field}.HostDevices", text)
            return
    claims = {c.get("name") for c in spec.get("resourceClaims") or ()}
    used: set[object] = set()
    for key, title in (("gpus", "GPU"), ("hostDevices", "HostDevice")):
        used |= _check_claims(f"{field}.domain.devices", key, title, devices.get(key) or [], findings)
    if used - claims:
        text = (
            "vmi.spec.resourceClaims must specify all claims used in vmi.spec.domain.devices.gpus and "
            "vmi.spec.domain.devices.hostDevices"
        )
        findings.add(f"{field}.resourceClaims", text)


def _check_claims(here: str, key: str, title: str, entries: list[Json], findings: Findings) -> set[object]:
    """Faults of one list of devices; returns the resource claims that it uses."""
    name = f"vmi.spec.domain.devices.{key}"
    if any(e.get("deviceName") and e.get("claimName") for e in entries):
        findings.add(f"{here}.{key}", f"{name} contains {title}s with both deviceName and claimRequest")
        return set()
    if any(not e.get("deviceName") and not e.get("claimName") for e in entries):
        text = (
            f"{name} contains {title}s without deviceName or claimRequest; each {title} must specify either a "
            "deviceName or a claimRequest"
        )
        findings.add(f"{here}.{key}", text, REQUIRED)
    for index, entry in enumerate(entries):
        if entry.get("claimName") and not entry.get("requestName"):
            where = f"{here}.{key}[{index}].requestName"
            findings.add(where, f"requestName is required for DRA {title}", REQUIRED)
    return {e["claimName"] for e in entries if e.get("claimName")}


def check_architecture(field: str, spec: Json, findings: Findings) -> None:
    """What an architecture cannot do. An unknown architecture is refused."""
    architecture = spec.get("architecture")
    domain: Json = spec["domain"]
    watchdog: Json = domain["devices"].get("watchdog") or {}
    here = f"{field}.domain.devices.watchdog"
    if architecture == "amd64":
        if watchdog.get("diag288") is not None:
            findings.add(here, "amd64 only supports I6300ESB watchdog device", NOT_SUPPORTED)
    elif architecture == "s390x":
        if watchdog.get("i6300esb") is not None:
            findings.add(here, "s390x only supports Diag288 watchdog device", NOT_SUPPORTED)
    elif architecture == "arm64":
        _check_arm(field, domain, findings)
    else:
        findings.add(f"{field}.architecture", f"unsupported architecture: {architecture}")


def _check_arm(field: str, domain: Json, findings: Findings) -> None:
    devices: Json = domain["devices"]
    bootloader = (domain.get("firmware") or {}).get("bootloader") or {}
    if bootloader.get("bios") is not None:
        text = "Arm64 does not support bios boot, please change to uefi boot"
        findings.add(f"{field}.domain.firmware.bootloader.bios", text, NOT_SUPPORTED)
    if ((bootloader.get("efi") or {}).get("secureBoot")) is True:
        text = "UEFI secure boot is currently not supported on aarch64 Arch"
        findings.add(f"{field}.domain.firmware.bootloader.efi.secureboot", text, NOT_SUPPORTED)
    model = (domain.get("cpu") or {}).get("model")
    if model and model != "host-passthrough":
        text = "currently, host-passthrough is the only model supported on Arm64"
        findings.add(f"{field}.domain.cpu.model", text, NOT_SUPPORTED)
    for index, disk in enumerate(devices.get("disks") or ()):
        for kind in ("disk", "cdrom", "lun"):
            bus = (disk.get(kind) or {}).get("bus")
            if bus and bus not in ("virtio", "scsi"):
                text = "Arm64 not support this disk bus type, please use virtio or scsi"
                findings.add(f"{field}.domain.devices.disks[{index}].{kind}.bus", text, NOT_SUPPORTED)
    for key, title in (("watchdog", "Watchdog"), ("sound", "sound")):
        if devices.get(key) is not None:
            findings.add(f"{field}.domain.devices.{key}", f"Arm64 not support {title} device", NOT_SUPPORTED)

"""Rules about disks, volumes and access credentials of a machine's spec.

Texts and field paths, the odd ones included, are KubeVirt's (notes 6.3, recordings `reject-volumes`, `gates`): clients
match them. `field` is the path of the spec (`spec` of an instance, `spec.template.spec` of a machine). Pure.
"""

from __future__ import annotations

import base64
import binascii
import posixpath
import re
from typing import Any

from stead.server.admission import names
from stead.server.admission.cluster import Cluster
from stead.server.admission.contract import Json
from stead.server.admission.findings import NOT_FOUND, NOT_SUPPORTED, REQUIRED, Findings

_MOST_ENTRIES = 256
_LONGEST_SERIAL = 256
_SERIAL_RE = re.compile(r"[A-Za-z0-9_.+-]+")
_BUSES = ("virtio", "scsi", "sata", "usb")
_CACHES = ("none", "writethrough", "writeback")
_ERROR_POLICIES = ("stop", "ignore", "report", "enospace")
_SMALLEST_BLOCK, _LARGEST_BLOCK = 512, 2097152
_LONGEST_CLOUD_INIT = 2048
_SOURCES = (
    "persistentVolumeClaim", "sysprep", "cloudInitNoCloud", "cloudInitConfigDrive", "containerDisk", "ephemeral",
    "emptyDisk", "hostDisk", "dataVolume", "configMap", "secret", "downwardAPI", "serviceAccount", "downwardMetrics",
    "memoryDump", "containerPath",
)  # fmt: skip
#: at most one volume of each of these, and what the message calls it
_SINGLE_SOURCES = {
    "downwardMetrics": "downwardMetric", "memoryDump": "memory dump", "serviceAccount": "serviceAccount",
}  # fmt: skip
#: compared as text, so that `/var/run/kubevirtual` is refused too (note 35)
_RESERVED_PATHS = ("/var/run/kubevirt", "/var/run/libvirt")


def check_storage(field: str, spec: Json, findings: Findings) -> None:
    """The rules that upstream asks twice for an instance: disks, container disk paths, utility volumes."""
    disks = (spec.get("domain") or {}).get("devices", {}).get("disks") or []
    check_disks(f"{field}.domain.devices.disks", disks, findings)
    for index, volume in enumerate(spec.get("volumes") or ()):
        disk = volume.get("containerDisk")
        if disk is not None and disk.get("path"):
            _check_image_path(f"{field}.volumes[{index}].containerDisk", str(disk["path"]), findings)
    if spec.get("utilityVolumes"):
        text = "cannot create VMI with utility volumes in spec, utility volumes can only be added via hotplug"
        findings.add(f"{field}.utilityVolumes", text)


def _check_image_path(field: str, path: str, findings: Findings) -> None:
    if path == "/":
        findings.add(field, f"{field} must not point to root")
    elif not path.startswith("/") or posixpath.normpath(path) != path:
        findings.add(field, f"{field} must be an absolute path to a file without relative components")


def check_disks(field: str, disks: list[Json], findings: Findings) -> None:
    """Disks alone, without their volumes. `field` is the path of the list."""
    if len(disks) > _MOST_ENTRIES:
        findings.add(field, f"{field} list exceeds the {_MOST_ENTRIES} element limit in length")
        return
    odd = f"{field}.domain.devices.disks"
    seen: dict[str, int] = {}
    for index, disk in enumerate(disks):
        here = f"{field}[{index}]"
        name = str(disk.get("name") or "")
        if name in seen:
            findings.add(f"{here}.name", f"{here} and {field}[{seen[name]}] must not have the same Name.")
        seen.setdefault(name, index)
        for fault in names.label_faults(name):
            findings.add(f"{odd}[{index}].name", fault)
        kinds = [kind for kind in ("disk", "lun", "cdrom") if disk.get(kind) is not None]
        if len(kinds) > 1:
            findings.add(here, f"{here} can only have a single target type defined")
        order = disk.get("bootOrder")
        if order is not None and order < 1:
            findings.add(f"{here}.bootOrder", f"{here} must have a boot order > 0, if supplied")
        for kind in kinds:
            _check_target(field, index, kind, disk, findings)
        _check_modes(field, index, disk, findings)
        _check_block_size(f"{here}.blockSize", disk.get("blockSize") or {}, findings)


def _check_target(field: str, index: int, kind: str, disk: Json, findings: Findings) -> None:
    here, target = f"{field}[{index}]", disk[kind]
    bus = str(target.get("bus") or "")
    address = str(target.get("pciAddress") or "")
    if address:
        odd = f"{field}.domain.devices.disks.{kind}[{index}]"
        if bus != "virtio":
            text = f"disk {odd}.name - setting a PCI address is only possible with bus type virtio."
            findings.add(f"{odd}.pciAddress", text)
        elif not names.is_pci_address(address):
            findings.add(f"{odd}.pciAddress", f"disk {odd}.name has malformed PCI address ({address}).")
    if bus == "ide":
        findings.add(f"{here}.{kind}.bus", "IDE bus is not supported")
    elif bus and bus not in _BUSES:
        text = f"{here} is set with an unrecognized bus {bus}, must be one of: [{' '.join(_BUSES)}]"
        findings.add(f"{here}.{kind}.bus", text)
    elif kind == "cdrom" and bus == "virtio":
        findings.add(f"{here}.cdrom.bus", "Bus type virtio is invalid for CD-ROM device")
    if disk.get("dedicatedIOThread") and bus in ("sata", "usb"):
        text = f"IOThreads are not supported for disks on a {bus} bus"
        findings.add(f"{field}.domain.devices.disks[{index}]", text, NOT_SUPPORTED)


def _check_modes(field: str, index: int, disk: Json, findings: Findings) -> None:
    here = f"{field}[{index}]"
    serial = str(disk.get("serial") or "")
    if len(serial) > _LONGEST_SERIAL:
        text = f"{here} must be less than or equal to {_LONGEST_SERIAL} in length, if specified"
        findings.add(f"{here}.serial", text)
    if serial and not _SERIAL_RE.fullmatch(serial):
        text = f"{here} must be made up of the following characters [A-Za-z0-9_.+-], if specified"
        findings.add(f"{here}.serial", text)
    cache = disk.get("cache")
    if cache and cache not in _CACHES:
        findings.add(f"{here}.cache", f"{here}.cache has invalid value {cache}")
    if disk.get("io") and disk["io"] not in ("native", "threads"):
        text = f"Disk IO mode for {field} is not supported. Supported modes are: native, threads."
        findings.add(f"{field}.domain.devices.disks[{index}].io", text, NOT_SUPPORTED)
    policy = disk.get("errorPolicy")
    if policy is not None and policy not in _ERROR_POLICIES:
        findings.add(f"{here}.errorPolicy", f'{here}.errorPolicy has invalid value "{policy}"')


def _check_block_size(field: str, block_size: Json, findings: Findings) -> None:
    custom = block_size.get("custom")
    match = block_size.get("matchVolume")
    if custom is None:
        return
    if match is not None and match.get("enabled", True):
        findings.add(field, "Block size matching can't be enabled together with a custom value")
        return
    logical, physical = int(custom.get("logical") or 0), int(custom.get("physical") or 0)
    if logical > physical:
        text = f"Logical size {logical} must be the same or less than the physical size of {physical}"
        findings.add(f"{field}.custom.logical", text)
    for key, size in (("logical", logical), ("physical", physical)):
        here = f"{field}.custom.{key}"
        if size < _SMALLEST_BLOCK:
            findings.add(here, f"Provided size of {size} is less than the supported minimum size of {_SMALLEST_BLOCK}")
        elif size > _LARGEST_BLOCK:
            text = f"Provided size of {size} is greater than the supported maximum size of {_LARGEST_BLOCK}"
            findings.add(here, text)
        elif size & (size - 1):
            findings.add(here, f"Provided size of {size} is not a power of 2")


def check_disk_volumes(field: str, spec: Json, cluster: Cluster, findings: Findings) -> dict[int, str]:
    """Disks against the volumes that they show, and boot orders. Returns who has which boot order, for interfaces."""
    volumes = {v.get("name"): v for v in spec.get("volumes") or ()}
    taken: dict[int, str] = {}
    for index, disk in enumerate(spec["domain"]["devices"].get("disks") or ()):
        here = f"{field}.domain.devices.disks[{index}]"
        volume = volumes.get(disk.get("name"))
        if volume is None:
            _check_empty_disk(here, disk, cluster, findings)
        else:
            _check_disk_of_volume(here, disk, volume, findings)
        order = disk.get("bootOrder")
        if order is None:
            continue
        if order in taken:
            findings.add(f"{here}.bootOrder", f"Boot order for {here}.bootOrder already set for a different device.")
        taken.setdefault(order, here)
    return taken


def _check_empty_disk(here: str, disk: Json, cluster: Cluster, findings: Findings) -> None:
    if disk.get("cdrom") is None:
        findings.add(f"{here}.name", f"{here}.Name '{disk.get('name', '')}' not found.")
    elif not cluster.has("DeclarativeHotplugVolumes"):
        text = "DeclarativeHotplugVolumes feature gate not enabled, cannot define an empty CD-ROM disk"
        findings.add(f"{here}.name", text)


def _check_disk_of_volume(here: str, disk: Json, volume: Json, findings: Findings) -> None:
    is_block = volume.get("persistentVolumeClaim") is not None or volume.get("dataVolume") is not None
    if disk.get("lun") is not None and not is_block:
        text = f"{here}.lun can only be mapped to a DataVolume or PersistentVolumeClaim volume."
        findings.add(f"{here}.lun", text)
    bus = (disk.get("disk") or {}).get("bus")
    if volume.get("downwardMetrics") is not None and bus != "virtio":
        text = f"DownwardMetrics volume must be mapped to virtio bus, but {here}.disk.bus is set to {bus or ''}"
        findings.add(f"{here}.disk.bus", text)


def check_volumes(field: str, spec: Json, cluster: Cluster, findings: Findings) -> None:
    """Volumes and their sources."""
    volumes = spec.get("volumes") or []
    here = f"{field}.volumes"
    if len(volumes) > _MOST_ENTRIES:
        findings.add(here, f"{here} list exceeds the {_MOST_ENTRIES} element limit in length")
        return
    seen: dict[Any, int] = {}
    for index, volume in enumerate(volumes):
        name = volume.get("name")
        if name in seen:
            text = f"{here}[{index}] and {here}[{seen[name]}] must not have the same Name."
            findings.add(f"{here}[{index}].name", text)
        seen.setdefault(name, index)
        _check_volume(f"{here}[{index}]", volume, cluster, findings)
    for source, title in _SINGLE_SOURCES.items():
        if sum(v.get(source) is not None for v in volumes) > 1:
            findings.add(here, f"{here} must have max one {title} volume set")
    _check_container_paths(field, spec, findings)


def _check_volume(here: str, volume: Json, cluster: Cluster, findings: Findings) -> None:
    if sum(volume.get(source) is not None for source in _SOURCES) != 1:
        findings.add(here, f"{here} must have exactly one source type set")
    data_volume = volume.get("dataVolume")
    if data_volume is not None and not data_volume.get("name"):
        findings.add(f"{here}.name", "DataVolume 'name' must be set", REQUIRED)
    for kind in ("cloudInitNoCloud", "cloudInitConfigDrive"):
        if volume.get(kind) is not None:
            _check_cloud_init(f"{here}.{kind}", kind, volume[kind], findings)
    for source, key in (("configMap", "name"), ("secret", "secretName"), ("serviceAccount", "serviceAccountName")):
        if volume.get(source) is not None and not volume[source].get(key):
            findings.add(f"{here}.{source}.{key}", f"{here}.{source}.{key} is a required field")
    if volume.get("hostDisk") is not None:
        if cluster.has("HostDisk"):
            _check_host_disk(f"{here}.hostDisk", volume["hostDisk"], findings)
        else:
            findings.add(here, "HostDisk feature gate is not enabled")
    if volume.get("downwardMetrics") is not None and not cluster.has("DownwardMetrics"):
        text = "downwardMetrics disks are not allowed: DownwardMetrics feature gate is not enabled."
        findings.add(here, text)


def _check_host_disk(here: str, disk: Json, findings: Findings) -> None:
    if not disk.get("path"):
        findings.add(f"{here}.path", f"{here}.path is required for hostDisk volume", NOT_FOUND)
    kind = disk.get("type") or ""
    if kind not in ("Disk", "DiskOrCreate"):
        text = f"{here}.type has invalid value '{kind}', allowed are 'Disk' or 'DiskOrCreate'"
        findings.add(f"{here}.type", text)
    if disk.get("capacity") not in (None, "0", 0) and kind != "DiskOrCreate":
        text = f"{here}.capacity is allowed to pass only with {here}.type equal to 'DiskOrCreate'"
        findings.add(f"{here}.capacity", text)


def _check_cloud_init(here: str, kind: str, source: Json, findings: Findings) -> None:
    given = 0
    sources = (
        ("userData", "secretRef", "userdata", "userdatasource", "UserDataSecretRef"),
        ("networkData", "networkDataSecretRef", "networkdata", "networkdata source", "NetworkDataSecretRef"),
    )
    for plain, secret, title, counted, advice in sources:
        encoded = f"{plain}Base64"
        count = sum(bool(source.get(key)) for key in (plain, encoded, secret))
        length = len(str(source.get(plain) or "").encode())
        if source.get(encoded):
            decoded = _decoded(str(source[encoded]))
            if decoded is None:
                text = f"{here}.{encoded}.{kind}.{encoded} is not a valid base64 value."
                findings.add(f"{here}.{encoded}", text)
            length = len(decoded or b"")
        if count > 1:
            findings.add(here, f"{here} must have only one {counted} set.")
        if length > _LONGEST_CLOUD_INIT:
            text = f"{here} {title} exceeds {_LONGEST_CLOUD_INIT} byte limit. Should use {advice} for larger data."
            findings.add(here, text)
        given += count
    if given == 0:
        findings.add(here, f"{here} must have at least one userdatasource or one networkdatasource set.")


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text.replace("\n", "").replace("\r", ""), validate=True)
    except binascii.Error:
        return None


def _check_container_paths(field: str, spec: Json, findings: Findings) -> None:
    devices = spec["domain"]["devices"]
    disks = {d.get("name") for d in devices.get("disks") or ()}
    filesystems = {f.get("name") for f in devices.get("filesystems") or ()}
    for index, volume in enumerate(spec.get("volumes") or ()):
        source, name = volume.get("containerPath"), volume.get("name")
        if source is None:
            continue
        here = f"{field}.domain.volumes[{index}]"
        if name in disks:
            findings.add(here, f"ContainerPath volume '{name}' must be mapped to a filesystem, not a disk")
        if name not in filesystems:
            where = f"{field}.domain.devices.filesystems"
            findings.add(here, f"ContainerPath volume '{name}' must have a matching filesystem defined in {where}")
        path = str(source.get("path") or "")
        reserved = next((prefix for prefix in _RESERVED_PATHS if path.startswith(prefix)), None)
        if reserved:
            text = f"ContainerPath volume '{name}' uses reserved path prefix '{reserved}'"
            findings.add(f"{here}.containerPath.path", text)


def check_access_credentials(field: str, spec: Json, findings: Findings) -> None:
    """SSH keys and passwords that are handed to the guest."""
    kinds = {source for v in spec.get("volumes") or () for source in _SOURCES if v.get(source) is not None}
    for index, credential in enumerate(spec.get("accessCredentials") or ()):
        here = f"{field}.accessCredentials[{index}]"
        given = [kind for kind in ("sshPublicKey", "userPassword") if credential.get(kind) is not None]
        if len(given) != 1:
            findings.add(here, f"{here} must have exactly one access credential type set")
            continue
        _check_credential(here, given[0], credential[given[0]], kinds, findings)


def _check_credential(here: str, kind: str, body: Json, volume_kinds: set[str], findings: Findings) -> None:
    method: Json = body.get("propagationMethod") or {}
    where = f"{here}.{kind}.propagationMethod"
    known = ("configDrive", "noCloud", "qemuGuestAgent") if kind == "sshPublicKey" else ("qemuGuestAgent",)
    chosen = [name for name in known if method.get(name) is not None]
    if len(chosen) != 1:
        findings.add(where, f"{here} must have exactly one propagationMethod set")
    for name, source in (("configDrive", "cloudInitConfigDrive"), ("noCloud", "cloudInitNoCloud")):
        if name in chosen and source not in volume_kinds:
            text = f"{here} requires a {name} volume to exist when the {name} propagationMethod is in use."
            findings.add(where, text)
    if kind == "sshPublicKey" and "qemuGuestAgent" in chosen and not method["qemuGuestAgent"].get("users"):
        findings.add(where, f"{here} requires at least one user to be present in the users list")
    if (body.get("source") or {}).get("secret") is None:
        findings.add(f"{here}.{kind}.source", f"{here} must have exactly one source set")

"""Reading a VirtualMachineInstance: the questions that several modules of the agent ask of the JSON object.

Pure. Objects come from an informer and are never changed here. Field meanings: `kubevirt.io/v1`
VirtualMachineInstance.
"""

from __future__ import annotations

from typing import Any

from stead.kube import quantity as quantities

Object = dict[str, Any]

NODE_LABEL = "kubevirt.io/nodeName"
FINALIZER = "kubevirt.io/foregroundDeleteVirtualMachine"
ADDRESSES = "stead.io/addresses"
FINAL_PHASES = ("Succeeded", "Failed")

#: seconds that KubeVirt grants a guest to shut down when the instance does not say
#: (spec.terminationGracePeriodSeconds)
DEFAULT_GRACE_SECONDS = 30


def uid(vmi: Object) -> str:
    """`metadata.uid`, which names the machine at the hypervisor, in run directories and in records."""
    return str(vmi["metadata"].get("uid", ""))


def name(vmi: Object) -> str:
    return str(vmi["metadata"]["name"])


def namespace(vmi: Object) -> str:
    return str(vmi["metadata"].get("namespace", ""))


def key(vmi: Object) -> tuple[str, str]:
    """(namespace, name)."""
    return namespace(vmi), name(vmi)


def spec(vmi: Object) -> Object:
    return vmi.get("spec") or {}


def domain(vmi: Object) -> Object:
    return spec(vmi).get("domain") or {}


def devices(vmi: Object) -> Object:
    return domain(vmi).get("devices") or {}


def status(vmi: Object) -> Object:
    return vmi.get("status") or {}


def phase(vmi: Object) -> str:
    return str(status(vmi).get("phase", ""))


def is_final(vmi: Object) -> bool:
    return phase(vmi) in FINAL_PHASES


def is_deleting(vmi: Object) -> bool:
    return bool(vmi["metadata"].get("deletionTimestamp"))


def resource_version(vmi: Object) -> str:
    return str(vmi["metadata"].get("resourceVersion", ""))


def is_older(candidate: Object, known: Object) -> bool:
    """True when `candidate` is certainly an earlier version than `known` (ours are integers; others are opaque)."""
    ours, theirs = resource_version(candidate), resource_version(known)
    return ours.isdigit() and theirs.isdigit() and int(ours) < int(theirs)


def grace_seconds(vmi: Object) -> float:
    """How long the guest may take to power off. Negative values mean none."""
    value = spec(vmi).get("terminationGracePeriodSeconds")
    return float(DEFAULT_GRACE_SECONDS if value is None else max(0, int(value)))


def starts_paused(vmi: Object) -> bool:
    return spec(vmi).get("startStrategy") == "Paused"


def has_acpi(vmi: Object) -> bool:
    """Whether the guest can be asked to power off by ACPI (`features.acpi.enabled`, default on)."""
    acpi = (domain(vmi).get("features") or {}).get("acpi")
    return acpi is None or acpi.get("enabled", True) is not False


def has_serial_console(vmi: Object) -> bool:
    return devices(vmi).get("autoattachSerialConsole") is not False


def logs_serial_console(vmi: Object) -> bool:
    """What the guest writes to its serial port is kept in a log (`logSerialConsole`)."""
    return has_serial_console(vmi) and bool(devices(vmi).get("logSerialConsole"))


def tracks_changes(vmi: Object) -> bool:
    """Which blocks of its disks change is to be recorded, for incremental backups."""
    return (status(vmi).get("changedBlockTracking") or {}).get("state") in ("Initializing", "Enabled")


def has_persistent_efi(vmi: Object) -> bool:
    """UEFI's variables outlive the instance."""
    loader = (domain(vmi).get("firmware") or {}).get("bootloader") or {}
    return bool((loader.get("efi") or {}).get("persistent"))


def has_tpm(vmi: Object) -> bool:
    tpm = devices(vmi).get("tpm")
    return tpm is not None and tpm.get("enabled") is not False


def has_persistent_tpm(vmi: Object) -> bool:
    """What the TPM keeps outlives the instance."""
    return has_tpm(vmi) and bool(devices(vmi)["tpm"].get("persistent"))


def has_vsock(vmi: Object) -> bool:
    return bool(devices(vmi).get("autoattachVSOCK"))


def has_graphics(vmi: Object) -> bool:
    return devices(vmi).get("autoattachGraphicsDevice") is not False


def condition(vmi: Object, kind: str) -> Object | None:
    """The condition of that type, if the instance has it."""
    return next((c for c in status(vmi).get("conditions") or [] if c.get("type") == kind), None)


def volume(vmi: Object, wanted: str) -> Object | None:
    """The entry of `spec.volumes` of that name."""
    return next((v for v in spec(vmi).get("volumes") or [] if v.get("name") == wanted), None)


def source_of(entry: Object) -> tuple[str, Object]:
    """(source key, source) of a volume or network entry: the one key that is not `name`. ("", {}) if there is none."""
    for field, value in entry.items():
        if field != "name" and isinstance(value, dict):
            return field, value
    return "", {}


def claim_of(entry: Object) -> str:
    """Name of the PersistentVolumeClaim behind a volume ("" if it has none); a DataVolume's claim bears its name."""
    kind, source = source_of(entry)
    if kind == "persistentVolumeClaim":
        return str(source.get("claimName", ""))
    if kind == "dataVolume":
        return str(source.get("name", ""))
    if kind == "ephemeral":
        return str((source.get("persistentVolumeClaim") or {}).get("claimName", ""))
    return ""


def size_in_bytes(quantity: str | int | float) -> int:
    """Bytes of a quantity of storage or memory ("1Gi", 1024, "1.5G"), rounded up. ValueError if it is none."""
    return int(quantities.parse(quantity))


def guest_memory(vmi: Object) -> int:
    """Bytes of guest memory: memory.guest, else requests.memory, else limits.memory, else one hugepage."""
    memory = domain(vmi).get("memory") or {}
    resources = domain(vmi).get("resources") or {}
    for value in (
        memory.get("guest"),
        (resources.get("requests") or {}).get("memory"),
        (resources.get("limits") or {}).get("memory"),
        (memory.get("hugepages") or {}).get("pageSize"),
    ):
        if value is not None:
            return size_in_bytes(value)
    return 0


def topology(vmi: Object) -> tuple[int, int, int]:
    """(sockets, cores, threads), each at least 1."""
    cpu = domain(vmi).get("cpu") or {}
    return (
        max(1, int(cpu.get("sockets") or 1)),
        max(1, int(cpu.get("cores") or 1)),
        max(1, int(cpu.get("threads") or 1)),
    )

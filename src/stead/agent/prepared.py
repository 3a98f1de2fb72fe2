"""What is ready on this host for one machine: values that `disks`, `nets` and `bringup` make and `plan` and `status`
read.

Pure data. One value is written as JSON beside the machine (`record.py`), so that an agent that starts anew knows a
running machine's disks and ports without touching them.
"""

from __future__ import annotations

import msgspec

from stead.hypervisor.contract import Nic


class Unsupported(Exception):
    """The instance asks for what this host, driver or release cannot honour. `field` is the VMI's field path."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class NotReady(Exception):
    """Something that the machine needs is not there yet; trying again in `retry_seconds` may succeed.

    `reason` becomes the reason of the condition Synchronized=False.
    """

    def __init__(self, reason: str, message: str, retry_seconds: float = 5.0) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_seconds = retry_seconds


class PreparedVolume(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One volume as the hypervisor may open it. `format` and `base_format` are raw or qcow2; sizes in bytes.

    `kind` is the source's key in the VMI (containerDisk, persistentVolumeClaim, …). `digest` is the container disk's.
    `direct_io` says whether O_DIRECT works on the file. `claim` is the PersistentVolumeClaim's name behind it.
    """

    name: str
    kind: str
    path: str
    format: str = "raw"
    base: str = ""
    base_format: str = ""
    source: str = "file"
    read_only: bool = False
    size: int = 0
    digest: str = ""
    direct_io: bool = True
    preallocated: bool = False
    claim: str = ""
    capacity: str = ""
    access_modes: tuple[str, ...] = ()
    volume_mode: str = "Filesystem"
    #: other hosts see the same file
    shared: bool = False
    #: a qcow2 beside the raw disk that records which blocks change; "" = none
    tracking: str = ""


class PreparedKernel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Kernel and initrd of `firmware.kernelBoot`; either may be empty. Checksums are CRC-32, as KubeVirt reports."""

    kernel: str = ""
    initrd: str = ""


class Address(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One network of the machine as status and port forwarding see it. `reachable` is where the host reaches the
    guest.
    """

    network: str
    interface: str
    mac: str = ""
    ipv4: str = ""
    netns: str = ""
    queues: int = 1


class Prepared(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything made for one machine. `directory` holds its private files, `run_dir` its sockets (mode 0700)."""

    uid: int
    gid: int
    directory: str
    run_dir: str
    volumes: tuple[PreparedVolume, ...] = ()
    nics: tuple[Nic, ...] = ()
    addresses: tuple[Address, ...] = ()
    kernel: PreparedKernel = PreparedKernel()
    acpi_tables: tuple[tuple[str, str], ...] = ()
    memory_overhead: int = 0
    #: folder of what outlives the instance (UEFI variables, TPM state); "" = nothing does
    persistent: str = ""
    #: address of its vsock device; 0 = it has none
    vsock_cid: int = 0

    def volume(self, name: str) -> PreparedVolume | None:
        """The prepared volume of that name."""
        return next((v for v in self.volumes if v.name == name), None)

    def without_shared(self) -> Prepared:
        """The same without volumes that other hosts may be using."""
        return msgspec.structs.replace(self, volumes=tuple(v for v in self.volumes if not v.shared))

    @property
    def serial_socket(self) -> str:
        return f"{self.run_dir}/serial0.sock"

    @property
    def serial_log(self) -> str:
        return f"{self.directory}/serial0.log"

    @property
    def vnc_socket(self) -> str:
        return f"{self.run_dir}/vnc.sock"

"""The HAL: what the agent asks of a hypervisor. A driver takes one complete desired `Machine` and reports what it sees.

Features are fields of `Machine`, not methods, so the contract stays small. A driver states its `Capabilities`;
admission, placement and status read those, never a driver's name. Third parties register drivers under the entry
point group `stead.hypervisors`. This module imports nothing of ours; paths, uids, cgroups and namespaces are inputs
made by the agent, so the same driver serves a bare host and a launcher pod. One contract suite
(`tests/contract/test_hypervisor.py`) runs on every driver. Concurrency: the agent calls a driver for one machine from
that machine's task only; different machines are called concurrently, so a driver must be safe for that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Any, Protocol

import msgspec


class DriverError(Exception):
    """Base of the four kinds of failure. The message says operation, object and value; the cause is chained."""


class NotFound(DriverError):
    """No such machine (or device) at the hypervisor."""


class Busy(DriverError):
    """The machine is in a state in which the operation cannot run now; trying later may succeed."""


class Unsupported(DriverError):
    """This driver or host cannot honour a field. `field` is the Machine field's dotted name."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class Failed(DriverError):
    """The hypervisor tried and failed."""


class State(StrEnum):
    """Observed run state of a machine."""

    OFF = "off"  # defined, not running
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"  # guest is shutting down
    CRASHED = "crashed"


class StopReason(StrEnum):
    """Why a machine is off or paused. Drivers map their own reasons onto these."""

    NONE = ""
    SHUTDOWN = "shutdown"  # the guest powered off
    DESTROYED = "destroyed"  # stopped from the host
    CRASHED = "crashed"  # guest panic or QEMU died
    FAILED = "failed"  # could not start
    MIGRATED = "migrated"
    SAVED = "saved"
    USER = "user"  # paused by a call
    IO_ERROR = "io-error"  # paused on an I/O error
    MIGRATION = "migration"


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the value types below: immutable, comparable, JSON-encodable."""


class Cpu(Value, frozen=True):
    """Topology and model. `max_sockets` > `sockets` leaves room for CPUs plugged in later.

    `mode`: `host-model`, `host-passthrough`, `maximum` or `custom` (then `model` names it). `features` are
    (name, policy) pairs with libvirt's policies (force, require, optional, disable, forbid).
    """

    sockets: int = 1
    cores: int = 1
    threads: int = 1
    max_sockets: int = 0
    mode: str = "host-model"
    model: str = ""
    features: tuple[tuple[str, str], ...] = ()
    dedicated: tuple[int, ...] = ()  # host CPU of each vCPU, in order; empty = not pinned
    emulator_cpus: tuple[int, ...] = ()


class Memory(Value, frozen=True):
    """Sizes in bytes. `maximum` > `size` leaves room for memory plugged in later (virtio-mem)."""

    size: int
    maximum: int = 0
    hugepage_size: int = 0
    balloon: bool = True
    shared: bool = False  # memfd, shared: virtiofs and vhost-user need it


class Firmware(Value, frozen=True):
    """`kind` is bios or efi. Kernel boot overrides the boot order when `kernel` is set. `nvram` is per machine."""

    kind: str = "bios"
    secure_boot: bool = False
    nvram: str = ""
    uuid: str = ""
    serial: str = ""
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""
    bios_serial: bool = False
    acpi_tables: tuple[tuple[str, str], ...] = ()  # (signature, path)
    sysinfo: tuple[tuple[str, str], ...] = ()  # SMBIOS: ("system.manufacturer", "…"), ("chassis.asset", "…")


class Disk(Value, frozen=True):
    """A block device. `name` is the API's disk name and becomes the device alias; `path` is opened as `format`.

    `device` is disk, cdrom or lun; an empty `path` is an empty tray. `source` is file or block. `base` makes `path` an
    overlay whose explicit base and format are given (the agent has made it). `data_file` makes `path` a qcow2 that
    holds nothing but bitmaps of changed blocks: the guest's data lie, raw, in `data_file` (of kind `data_source`).
    """

    name: str
    path: str
    format: str = "raw"
    source: str = "file"
    device: str = "disk"
    bus: str = "virtio"
    read_only: bool = False
    shareable: bool = False
    boot_order: int = 0
    serial: str = ""
    cache: str = ""
    io: str = ""
    error_policy: str = "stop"
    discard: str = "unmap"
    dedicated_io_thread: bool = False
    base: str = ""
    base_format: str = ""
    data_file: str = ""
    data_source: str = "file"
    logical_block_size: int = 0
    physical_block_size: int = 0
    pci_address: str = ""
    tray_open: bool = False
    queues: int = 0  # of a virtio disk; 0 = the hypervisor's choice


class Nic(Value, frozen=True):
    """A network device. `backend` is tap (an existing device `target`, made by the agent), bridge (a host bridge
    `target`; the hypervisor makes the tap) or passt (user-mode; `passt` holds its options).
    """

    name: str
    mac: str
    backend: str
    target: str
    model: str = "virtio"
    mtu: int = 0
    queues: int = 0
    boot_order: int = 0
    pci_address: str = ""
    acpi_index: int = 0
    link_up: bool = True
    passt: dict[str, Any] = {}


class Graphics(Value, frozen=True):
    """VNC on a unix socket and a video device (vga, bochs, virtio, ramfb, cirrus). Never on TCP."""

    vnc_socket: str
    video: str = "vga"


class Isolation(Value, frozen=True):
    """How the process is confined. `uid`/`gid` own the QEMU process and its files; limits go to its cgroup."""

    uid: int = 0
    gid: int = 0
    cgroup_parent: str = ""
    memory_limit: int = 0  # bytes; 0 = none
    cpu_shares: int = 0
    cpu_quota: int = 0  # thousandths of a host CPU; 0 = no bound
    pids_limit: int = 0
    network_namespace: str = ""


class Machine(Value, frozen=True):
    """The complete desired machine. `uid` is the VMI's uid and names it at the hypervisor; the same value twice is a
    no-op. Fields that a driver cannot honour raise `Unsupported` from `define`. `clock_offset` is utc, localtime,
    `variable:<seconds from UTC>` or `timezone:<name>`.
    """

    uid: str
    namespace: str
    name: str
    cpu: Cpu
    memory: Memory
    run_dir: str  # for sockets, mode 0700, owned by isolation.uid
    machine_type: str = "q35"
    architecture: str = "x86_64"
    firmware: Firmware = Firmware()
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    graphics: Graphics | None = None
    serial_socket: str = ""  # unix socket of the first serial port; "" = none
    serial_log: str = ""
    guest_agent: bool = True
    rng: bool = False
    tpm: str = ""  # "" none, else model: tpm-tis or tpm-crb
    tpm_state: str = ""  # persistent state directory; "" = volatile
    watchdog: tuple[str, str] | None = None  # (model, action)
    inputs: tuple[tuple[str, str], ...] = ()  # (type, bus)
    sound: str = ""
    io_threads: int = 0
    clock_offset: str = "utc"
    clock_timers: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    features: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()  # acpi, apic, smm, hyperv.* with attributes
    panic_devices: tuple[str, ...] = ()
    vsock_cid: int = 0
    usb_redirect: int = 0
    pci_placeholders: int = 0  # empty PCIe root ports kept for hot plug
    reboot_action: str = "restart"  # or "destroy"
    isolation: Isolation = Isolation()
    metadata: dict[str, str] = {}
    software_emulation: bool = False


class Observed(Value, frozen=True):
    """What the hypervisor reports of one machine."""

    uid: str
    namespace: str
    name: str
    state: State
    reason: StopReason = StopReason.NONE
    pid: int = 0
    agent_connected: bool = False
    machine_type: str = ""
    fingerprint: str = ""  # of the Machine it was defined from; "" = somebody changed it out of band
    detail: str = ""


class DriverEvent(Value, frozen=True):
    """Something happened to a machine: `kind` is lifecycle, agent, io-error, reboot, panic, watchdog, changed or lost.

    `lost` (empty uid) says that the connection to the hypervisor broke or came back: observe everything again.
    """

    uid: str
    kind: str
    detail: str = ""


class Capabilities(Value, frozen=True):
    """What driver and host offer. `features` are Machine field names (dotted) that `define` honours."""

    driver: str
    version: str
    hypervisor_version: str
    architectures: tuple[str, ...]
    machine_types: tuple[str, ...]
    cpu_models: tuple[str, ...]
    cpu_features: tuple[str, ...]
    host_cpu_model: str
    host_cpu_vendor: str
    features: tuple[str, ...]
    software_emulation: bool
    software_emulation_reason: str = ""
    live_migration: bool = False
    #: what a guest with the host's own model needs of another host; Hyper-V enlightenments that can be had
    host_model_features: tuple[str, ...] = ()
    hyperv_features: tuple[str, ...] = ()


class Hypervisor(Protocol):
    """A driver. Every method may raise the four kinds of `DriverError`; every wait inside has a deadline."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def capabilities(self) -> Capabilities: ...

    async def define(self, machine: Machine) -> None:
        """Make the definition equal to `machine` (it must be off). Idempotent."""
        ...

    async def start(self, uid: str, *, paused: bool = False) -> None:
        """Start a defined machine; Busy when it is already running."""
        ...

    async def shutdown(self, uid: str) -> None:
        """Ask the guest to power off (ACPI, or its agent) and return at once."""
        ...

    async def stop(self, uid: str) -> None:
        """End it now, whatever the guest does (also a stopped or hung process). No-op when off."""
        ...

    async def pause(self, uid: str) -> None: ...

    async def resume(self, uid: str) -> None: ...

    async def reset(self, uid: str) -> None: ...

    async def reboot(self, uid: str) -> None:
        """Guest-cooperative reboot: by its agent where it answers, else ACPI. Same process afterwards."""
        ...

    async def apply(self, machine: Machine) -> list[str]:
        """Bring a running machine nearer to `machine` in place; returns field names that need a restart."""
        ...

    async def resize_disk(self, uid: str, name: str, size_bytes: int) -> None:
        """The file behind disk `name` has grown to `size_bytes`: show the running guest. Busy when it is off."""
        ...

    async def undefine(self, uid: str) -> None:
        """Forget a machine that is off. No-op when unknown."""
        ...

    async def observe(self, uid: str) -> Observed:
        """Raises NotFound."""
        ...

    async def list(self) -> list[Observed]:
        """All machines of ours at this hypervisor; foreign ones are never listed or touched."""
        ...

    def events(self) -> AsyncIterator[DriverEvent]:
        """Events from now on, without end. Bounded: on overflow a `lost` event is delivered."""
        ...

    async def agent_command(self, uid: str, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """One QEMU guest agent command; returns its `return` value. Busy when no agent answers in 5 s."""
        ...

    async def describe(self, uid: str) -> str:
        """The driver's own text of the machine (domain XML for libvirt), for people."""
        ...

    async def screenshot(self, uid: str) -> bytes:
        """A PNG of the first display."""
        ...

    async def statistics(self, uid: str) -> dict[str, float]:
        """Counters by name: cpu_time_ns, memory_rss_bytes, balloon_bytes, block.<disk>.{rd,wr}_{bytes,reqs}, …"""
        ...


class BackupDisk(Value, frozen=True):
    """A disk of a backup: its name (which is the export's too), and where what the guest overwrites meanwhile goes."""

    name: str
    scratch: str


class BackupJob(Value, frozen=True):
    """A frozen view of disks of a running machine, served over NBD on the unix socket `socket` (made there, 0600).

    From `checkpoint` on, changes are recorded. `since` names an earlier one: each export then carries a bitmap
    `BACKUP_BITMAP` of what changed since. Both "" = a view only.
    """

    disks: tuple[BackupDisk, ...]
    socket: str
    checkpoint: str = ""
    since: str = ""


#: name of the bitmap that an export carries
BACKUP_BITMAP = "changed"


class Checkpoint(Value, frozen=True):
    """Since when changes are recorded. `record` is the driver's own text, with which it knows the checkpoint again."""

    name: str
    record: str


class Backups(Protocol):
    """What a driver may offer besides `Hypervisor`: frozen views of a running machine's disks, and what changed."""

    async def begin_backup(self, uid: str, job: BackupJob) -> None:
        """The view is that of the moment in this call; all disks at once. Busy beside another job, NotFound when
        `since` is not known (any more): then only a view without it can be had.
        """
        ...

    async def end_backup(self, uid: str) -> None:
        """Let go of the view. No-op without one."""
        ...

    async def checkpoints(self, uid: str) -> tuple[Checkpoint, ...]:
        """Oldest first."""
        ...

    async def restore_checkpoints(self, uid: str, known: tuple[Checkpoint, ...]) -> bool:
        """After a start: know again what the disks have recorded. False when it is not all there: then nothing is."""
        ...

    async def delete_checkpoint(self, uid: str, name: str) -> None:
        """What it recorded goes to the one before it. No-op when unknown."""
        ...

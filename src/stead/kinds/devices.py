"""Devices of a machine: disks, interfaces, and all the small ones; and the networks that interfaces join.

Pure data. Source: KubeVirt 1.8, kubevirt.io/v1; `portRanges` and `resourceClaim` from later recordings.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from stead.kinds.meta import Int32, Model, described


class FeatureState(Model, kw_only=True):
    """On or off; on when absent."""

    enabled: bool | None = None


class Devices(Model, kw_only=True):
    """All devices of a guest."""

    autoattach_graphics_device: Annotated[bool | None, described("false leaves out the graphics device and VNC")] = None
    autoattach_input_device: bool | None = None
    autoattach_mem_balloon: Annotated[bool | None, described("false leaves out the memory balloon")] = None
    autoattach_pod_interface: Annotated[bool | None, described("false leaves out the default interface")] = None
    autoattach_serial_console: Annotated[bool | None, described("false leaves out the serial console")] = None
    autoattach_vsock: Annotated[bool | None, described("true adds a vsock device")] = field(
        default=None, name="autoattachVSOCK"
    )
    block_multi_queue: Annotated[bool | None, described("a queue for each CPU on virtio disks")] = None
    client_passthrough: ClientPassthroughDevices | None = None
    disable_hotplug: bool | None = None
    disks: Annotated[
        Annotated[list[Disk], Meta(max_length=256)] | None, described("at most 256; each names a volume")
    ] = None
    downward_metrics: DownwardMetrics | None = None
    filesystems: list[Filesystem] | None = None
    gpus: list[GPU] | None = None
    host_devices: list[HostDevice] | None = None
    inputs: list[Input] | None = None
    interfaces: Annotated[
        Annotated[list[Interface], Meta(max_length=256)] | None, described("at most 256; each names a network")
    ] = None
    log_serial_console: Annotated[
        bool | None, described("keeps what the guest writes to the serial console in the log")
    ] = None
    network_interface_multiqueue: Annotated[bool | None, described("a queue for each CPU on virtio interfaces")] = None
    panic_devices: list[PanicDevice] | None = None
    rng: Rng | None = None
    sound: SoundDevice | None = None
    tpm: TPMDevice | None = None
    use_virtio_transitional: Annotated[bool | None, described("virtio devices for guests without virtio 1.0")] = None
    video: VideoDevice | None = None
    watchdog: Watchdog | None = None


class ClientPassthroughDevices(Model, kw_only=True):
    """Lets a client pass its USB devices through to the guest."""


class DownwardMetrics(Model, kw_only=True):
    """Metrics of the host by a virtio port."""


class Disk(Model, kw_only=True):
    """A disk of the guest. Has the name of a volume and one of disk, cdrom or lun."""

    name: str
    block_size: BlockSize | None = None
    boot_order: Annotated[Int32 | None, described("1 is first; without any, disks boot in the order of the list")] = (
        None
    )
    cache: Annotated[str | None, described("none, writethrough or writeback")] = None
    cdrom: CDRomTarget | None = None
    changed_block_tracking: Annotated[bool | None, described("records changed blocks for incremental backups")] = None
    dedicated_io_thread: bool | None = field(default=None, name="dedicatedIOThread")
    disk: DiskTarget | None = None
    error_policy: Annotated[
        str | None, described("on an I/O error: stop (the default), report, ignore or enospace")
    ] = None
    io: Annotated[str | None, described("native or threads")] = None
    lun: LunTarget | None = None
    serial: Annotated[str | None, described("serial number shown to the guest")] = None
    shareable: Annotated[bool | None, described("other machines may write to it too")] = None
    tag: str | None = None


class DiskTarget(Model, kw_only=True):
    """A hard disk."""

    bus: Annotated[str | None, described("virtio, sata, scsi or usb")] = None
    pci_address: str | None = None
    readonly: bool | None = None


class LunTarget(Model, kw_only=True):
    """A SCSI device passed through."""

    bus: str | None = None
    readonly: bool | None = None
    reservation: bool | None = None


class CDRomTarget(Model, kw_only=True):
    """A CD-ROM drive."""

    bus: str | None = None
    readonly: bool | None = None
    tray: Annotated[str | None, described("open or closed (the default)")] = None


class BlockSize(Model, kw_only=True):
    """Sizes of blocks that the guest sees."""

    custom: CustomBlockSize | None = None
    match_volume: FeatureState | None = None


class CustomBlockSize(Model, kw_only=True):
    """Sizes in bytes."""

    discard_granularity: Int32 | None = None
    logical: Int32 | None = None
    physical: Int32 | None = None


class Filesystem(Model, kw_only=True):
    """A volume as a shared file system."""

    name: str
    virtiofs: FilesystemVirtiofs


class FilesystemVirtiofs(Model, kw_only=True):
    """Shared by virtiofs."""


class GPU(Model, kw_only=True):
    """A graphics device of the host."""

    name: str
    claim_name: str | None = None
    device_name: str | None = None
    request_name: str | None = None
    tag: str | None = None
    virtual_gpu_options: VGPUOptions | None = field(default=None, name="virtualGPUOptions")


class VGPUOptions(Model, kw_only=True):
    """Options of a virtual GPU."""

    display: VGPUDisplayOptions | None = None


class VGPUDisplayOptions(Model, kw_only=True):
    """Whether a virtual GPU shows a display."""

    enabled: bool | None = None
    ram_fb: FeatureState | None = field(default=None, name="ramFB")


class HostDevice(Model, kw_only=True):
    """A PCI, mediated or USB device of the host."""

    name: str
    claim_name: str | None = None
    device_name: str | None = None
    request_name: str | None = None
    tag: str | None = None


class Input(Model, kw_only=True):
    """An input device; a tablet on usb when nothing else is said."""

    name: str
    type: str
    bus: str | None = None


class Interface(Model, kw_only=True):
    """A network interface of the guest. Has the name of a network and one way of binding."""

    name: str
    acpi_index: Int32 | None = None
    binding: PluginBinding | None = None
    boot_order: Annotated[Int32 | None, described("network boot, in one sequence with the disks")] = None
    bridge: Annotated[InterfaceBridge | None, described("on a layer-2 bridge")] = None
    dhcp_options: DHCPOptions | None = None
    mac_address: Annotated[str | None, described("made up when absent, and kept over restarts")] = None
    macvtap: DeprecatedInterfaceMacvtap | None = None
    masquerade: Annotated[
        InterfaceMasquerade | None, described("behind NAT on the machine network; the guest sees 10.0.2.2")
    ] = None
    model: Annotated[str | None, described("virtio (the default), e1000e, e1000, rtl8139, ne2k_pci or pcnet")] = None
    passt: DeprecatedInterfacePasst | None = None
    passt_binding: InterfacePasstBinding | None = None
    pci_address: str | None = None
    ports: Annotated[list[Port] | None, described("ports that can be reached from outside; all when empty")] = None
    slirp: DeprecatedInterfaceSlirp | None = None
    sriov: Annotated[InterfaceSRIOV | None, described("a virtual function of a network card")] = None
    state: Annotated[str | None, described("up (the default), down or absent")] = None
    tag: str | None = None
    port_ranges: list[PortRange] | None = None


class PluginBinding(Model, kw_only=True):
    """A binding that the administrator has registered."""

    name: str


class InterfaceBridge(Model, kw_only=True):
    """Joins the guest to the network by a bridge."""


class InterfaceMasquerade(Model, kw_only=True):
    """Joins the guest to the network by NAT."""


class InterfaceSRIOV(Model, kw_only=True):
    """Passes a virtual function through."""


class InterfacePasstBinding(Model, kw_only=True):
    """Joins the guest to the network by passt."""


class DeprecatedInterfaceMacvtap(Model, kw_only=True):
    """Not supported any more."""


class DeprecatedInterfacePasst(Model, kw_only=True):
    """Not supported any more; see `passtBinding`."""


class DeprecatedInterfaceSlirp(Model, kw_only=True):
    """Not supported any more."""


class DHCPOptions(Model, kw_only=True):
    """Extra options that the guest gets by DHCP."""

    boot_file_name: str | None = None
    ntp_servers: list[str] | None = None
    private_options: list[DHCPPrivateOptions] | None = None
    tftp_server_name: str | None = None


class DHCPPrivateOptions(Model, kw_only=True):
    """A private option, 224 to 254."""

    option: Int32
    value: str


class Port(Model, kw_only=True):
    """A port that can be reached from outside."""

    port: Int32
    name: str | None = None
    protocol: Annotated[str | None, described("TCP (the default) or UDP")] = None


class PortRange(Model, kw_only=True):
    """A range of ports that can be reached from outside."""

    start: Int32
    end: Int32
    protocol: str | None = None


class Network(Model, kw_only=True):
    """What an interface is attached to. Exactly one kind."""

    name: str
    multus: Annotated[MultusNetwork | None, described("a network that a NetworkAttachmentDefinition describes")] = None
    pod: Annotated[PodNetwork | None, described("the machine network, with an address of the cluster's range")] = None
    resource_claim: NetworkResourceClaim | None = None


class MultusNetwork(Model, kw_only=True):
    """Names a NetworkAttachmentDefinition."""

    network_name: Annotated[str, described("`name` or `namespace/name`")]
    default: bool | None = None


class PodNetwork(Model, kw_only=True):
    """The default network."""

    vm_ipv6_network_cidr: str | None = field(default=None, name="vmIPv6NetworkCIDR")
    vm_network_cidr: Annotated[str | None, described("the guest's side of NAT, 10.0.2.0/24 when absent")] = field(
        default=None, name="vmNetworkCIDR"
    )


class NetworkResourceClaim(Model, kw_only=True):
    """The network device that a resource claim hands out."""

    claim_name: str | None = None
    request_name: str | None = None


class PanicDevice(Model, kw_only=True):
    """Tells the host when the guest's kernel panics."""

    model: str | None = None


class Rng(Model, kw_only=True):
    """Gives the guest randomness from the host."""


class SoundDevice(Model, kw_only=True):
    """A sound card."""

    name: str
    model: str | None = None


class TPMDevice(Model, kw_only=True):
    """A virtual TPM."""

    enabled: bool | None = None
    persistent: Annotated[bool | None, described("keeps its state over restarts")] = None


class VideoDevice(Model, kw_only=True):
    """The graphics card: virtio, vga, bochs, cirrus or ramfb."""

    type: str | None = None


class Watchdog(Model, kw_only=True):
    """Acts when the guest hangs."""

    name: str
    diag288: Diag288Watchdog | None = None
    i6300esb: I6300ESBWatchdog | None = None


class I6300ESBWatchdog(Model, kw_only=True):
    """Watchdog for PCs."""

    action: Annotated[str | None, described("reset (the default), poweroff or shutdown")] = None


class Diag288Watchdog(Model, kw_only=True):
    """Watchdog for s390x."""

    action: Annotated[str | None, described("reset (the default), poweroff or shutdown")] = None

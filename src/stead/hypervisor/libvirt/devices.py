"""Device elements of a domain: disks, network, graphics, serial and the rest. Pure; called by `xml.py` for whole
domains and by the driver for hot plug. Source: libvirt's domain format (formatdomain.html#devices, 9.0).

Device aliases are `ua-` and the API's device name, so that people, events and statistics speak of the same device.
Unix sockets lie in the machine's own run directory (mode 0700); nothing listens on TCP.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from stead.hypervisor.contract import Disk, Machine, Nic

GUEST_AGENT_CHANNEL = "org.qemu.guest_agent.0"
_PREFIX_OF_BUS = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd", "fdc": "fd"}
_BALLOON_PERIOD_SECONDS = "10"


def add_devices(domain: ET.Element, machine: Machine) -> None:
    """The `<devices>` element of a whole domain."""
    devices = ET.SubElement(domain, "devices")
    _add_controllers(devices, machine)
    for disk in machine.disks:
        devices.append(disk_element(machine, disk))
    for nic in machine.nics:
        devices.append(nic_element(nic))
    _add_serial(devices, machine)
    _add_agent_channel(devices, machine)
    _add_tpm(devices, machine)
    for kind, bus in machine.inputs:
        ET.SubElement(devices, "input", type=kind, bus=bus)
    _add_graphics(devices, machine)
    _add_smaller_devices(devices, machine)


def disk_targets(machine: Machine) -> dict[str, str]:
    """Target device (`vda`, `sdb`…) of each disk by name: letters in the order of the disks, per prefix."""
    counts: dict[str, int] = {}
    targets = {}
    for disk in machine.disks:
        prefix = _PREFIX_OF_BUS.get(disk.bus, "sd")
        index = counts.get(prefix, 0)
        counts[prefix] = index + 1
        targets[disk.name] = prefix + _letters(index)
    return targets


def _letters(index: int) -> str:
    """0 → a, 25 → z, 26 → aa."""
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(ord("a") + rest) + text
    return text


def _io_thread(machine: Machine, disk: Disk) -> int:
    """Number of the disk's I/O thread (from 1), 0 for none: dedicated disks first, the others share what is left."""
    if not machine.io_threads or disk.bus != "virtio":
        return 0
    eligible = [each for each in machine.disks if each.bus == "virtio"]
    dedicated = [each.name for each in eligible if each.dedicated_io_thread]
    if disk.name in dedicated:
        return dedicated.index(disk.name) % machine.io_threads + 1
    left = machine.io_threads - len(dedicated)
    if left <= 0:
        return machine.io_threads
    shared = [each.name for each in eligible if not each.dedicated_io_thread]
    return len(dedicated) + shared.index(disk.name) % left + 1


def disk_element(machine: Machine, disk: Disk, target: str = "") -> ET.Element:
    """One disk. `target` overrides the device letter for hot plug, where libvirt alone knows those in use."""
    element = ET.Element("disk", type=disk.source, device=disk.device)
    driver = ET.SubElement(element, "driver", name="qemu", type=disk.format)
    options = {"cache": disk.cache, "error_policy": disk.error_policy, "io": disk.io}
    if disk.device == "disk":
        options["discard"] = disk.discard
    for key, value in options.items():
        if value:
            driver.set(key, value)
    if disk.queues > 1 and disk.bus == "virtio":
        driver.set("queues", str(disk.queues))
    if thread := _io_thread(machine, disk):
        driver.set("iothread", str(thread))
    _add_source(element, disk)
    where = ET.SubElement(element, "target", dev=target or disk_targets(machine)[disk.name], bus=disk.bus)
    if disk.device in ("cdrom", "floppy") and disk.tray_open:
        where.set("tray", "open")
    if disk.logical_block_size:
        sizes = ET.SubElement(element, "blockio", logical_block_size=str(disk.logical_block_size))
        sizes.set("physical_block_size", str(disk.physical_block_size or disk.logical_block_size))
    if disk.read_only or disk.device == "cdrom":
        ET.SubElement(element, "readonly")
    if disk.shareable:
        ET.SubElement(element, "shareable")
    if disk.serial:
        ET.SubElement(element, "serial").text = disk.serial
    if disk.boot_order:
        ET.SubElement(element, "boot", order=str(disk.boot_order))
    ET.SubElement(element, "alias", name=f"ua-{disk.name}")
    _add_pci_address(element, disk.pci_address)
    return element


def _add_source(element: ET.Element, disk: Disk) -> None:
    """Source and backing file. Files that machines share keep their owner also where libvirt's default user runs QEMU
    and files are given to it.
    """
    attribute = "dev" if disk.source == "block" else "file"
    if not disk.path:
        return
    source = ET.SubElement(element, "source", {attribute: disk.path})
    if disk.data_file:  # libvirt from 10.10; before, the element is passed over and QEMU finds the file in the image
        store = ET.SubElement(source, "dataStore", type=disk.data_source)
        ET.SubElement(store, "format", type="raw")
        ET.SubElement(store, "source", {"dev" if disk.data_source == "block" else "file": disk.data_file})
    if disk.base:
        backing = ET.SubElement(element, "backingStore", type="file")
        ET.SubElement(backing, "format", type=disk.base_format or "raw")
        ET.SubElement(backing, "source", file=disk.base)
        ET.SubElement(backing, "backingStore")
    else:
        ET.SubElement(element, "backingStore")  # the end of the chain: libvirt must not look into the image for more


def _add_pci_address(element: ET.Element, address: str) -> None:
    """`0000:81:00.1` as libvirt's address element; nothing for an empty one."""
    if not address:
        return
    domain, bus, rest = address.split(":")
    slot, function = rest.split(".")
    parts = {"domain": domain, "bus": bus, "slot": slot, "function": function}
    ET.SubElement(element, "address", {"type": "pci", **{key: f"0x{value}" for key, value in parts.items()}})


def nic_element(nic: Nic) -> ET.Element:
    """One network interface. Raises ValueError for an unknown backend (the driver turns it into Unsupported)."""
    kinds = {"tap": "ethernet", "bridge": "bridge", "passt": "user"}
    if nic.backend not in kinds:
        raise ValueError(f"network backend {nic.backend!r} of interface {nic.name!r} is not one of {sorted(kinds)}")
    element = ET.Element("interface", type=kinds[nic.backend])
    ET.SubElement(element, "mac", address=nic.mac)
    if nic.backend == "bridge":
        ET.SubElement(element, "source", bridge=nic.target)
    elif nic.backend == "passt":
        _add_passt(element, nic)
    else:
        ET.SubElement(element, "target", dev=nic.target, managed="no")
    ET.SubElement(element, "model", type=nic.model)
    if nic.queues > 1 and nic.model.startswith("virtio"):
        ET.SubElement(element, "driver", queues=str(nic.queues))
    if not nic.link_up:
        ET.SubElement(element, "link", state="down")
    if nic.mtu:
        ET.SubElement(element, "mtu", size=str(nic.mtu))
    if nic.boot_order:
        ET.SubElement(element, "boot", order=str(nic.boot_order))
    elif nic.model.startswith("virtio") or nic.model == "e1000e":
        ET.SubElement(element, "rom", enabled="no")  # the firmware need not try to boot from it
    if nic.acpi_index:
        ET.SubElement(element, "acpi", index=str(nic.acpi_index))
    ET.SubElement(element, "alias", name=f"ua-{nic.name}")
    _add_pci_address(element, nic.pci_address)
    return element


def _add_passt(element: ET.Element, nic: Nic) -> None:
    """`nic.passt` holds address, prefix, logFile, source (host device) and ports [(proto, host port, guest port)]."""
    options = nic.passt
    backend = ET.SubElement(element, "backend", type="passt")
    if options.get("logFile"):
        backend.set("logFile", str(options["logFile"]))
    if options.get("source"):
        ET.SubElement(element, "source", dev=str(options["source"]))
    if options.get("address"):
        family = "ipv6" if ":" in str(options["address"]) else "ipv4"
        address = ET.SubElement(element, "ip", family=family, address=str(options["address"]))
        address.set("prefix", str(options.get("prefix", 24)))
    for protocol, start, to in options.get("ports", ()):
        forward = ET.SubElement(element, "portForward", proto=str(protocol))
        ET.SubElement(forward, "range", start=str(start), to=str(to))


def _add_controllers(devices: ET.Element, machine: Machine) -> None:
    buses = {disk.bus for disk in machine.disks} | {bus for _, bus in machine.inputs}
    needs_usb = "usb" in buses or machine.usb_redirect
    ET.SubElement(devices, "controller", type="usb", index="0", model="qemu-xhci" if needs_usb else "none")
    if "scsi" in buses:
        controller = ET.SubElement(devices, "controller", type="scsi", index="0", model="virtio-scsi")
        if machine.io_threads:
            ET.SubElement(controller, "driver", iothread="1")
    if machine.guest_agent:
        ET.SubElement(devices, "controller", type="virtio-serial", index="0")
    if machine.pci_placeholders and machine.machine_type.find("q35") >= 0:
        # libvirt fills root ports that exist before it adds more: name those in use as well as the empty ones.
        for index in range(1, _pcie_devices(machine) + machine.pci_placeholders + 1):
            ET.SubElement(devices, "controller", type="pci", index=str(index), model="pcie-root-port")


def _pcie_devices(machine: Machine) -> int:
    """How many root ports the machine's own devices take on q35."""
    disks = sum(1 for disk in machine.disks if disk.bus == "virtio")
    nics = sum(1 for nic in machine.nics if nic.model.startswith("virtio") or nic.model == "e1000e")
    buses = {disk.bus for disk in machine.disks} | {bus for _, bus in machine.inputs}
    single = (
        "scsi" in buses,
        "usb" in buses or machine.usb_redirect > 0,
        machine.guest_agent,
        machine.rng,
        machine.memory.balloon,
        machine.memory.maximum > machine.memory.size,
        machine.vsock_cid > 0,
    )
    virtio_inputs = sum(1 for _, bus in machine.inputs if bus == "virtio")
    return disks + nics + virtio_inputs + sum(single)


def _add_serial(devices: ET.Element, machine: Machine) -> None:
    if not machine.serial_socket:
        return
    for tag in ("serial", "console"):
        serial = ET.SubElement(devices, tag, type="unix")
        ET.SubElement(serial, "source", mode="bind", path=machine.serial_socket)
        if machine.serial_log:
            ET.SubElement(serial, "log", file=machine.serial_log, append="on")
        target = ET.SubElement(serial, "target", port="0")
        if tag == "console":
            target.set("type", "serial")


def _add_agent_channel(devices: ET.Element, machine: Machine) -> None:
    if machine.guest_agent:
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "target", type="virtio", name=GUEST_AGENT_CHANNEL)


def _add_tpm(devices: ET.Element, machine: Machine) -> None:
    if not machine.tpm:
        return
    tpm = ET.SubElement(devices, "tpm", model=machine.tpm)
    backend = ET.SubElement(tpm, "backend", type="emulator", version="2.0")
    if machine.tpm_state:
        backend.set("persistent_state", "yes")
        ET.SubElement(backend, "source", type="dir", path=machine.tpm_state)


def _add_graphics(devices: ET.Element, machine: Machine) -> None:
    if machine.graphics is None:
        return
    graphics = ET.SubElement(devices, "graphics", type="vnc")
    ET.SubElement(graphics, "listen", type="socket", socket=machine.graphics.vnc_socket)
    video = ET.SubElement(devices, "video")
    ET.SubElement(video, "model", type=machine.graphics.video, heads="1")


def memory_element(machine: Machine) -> ET.Element:
    """The virtio-mem device that holds the room above `memory.size`; none of it is plugged in at the start."""
    element = ET.Element("memory", model="virtio-mem")
    if machine.memory.shared:
        element.set("access", "shared")
    target = ET.SubElement(element, "target")
    room = machine.memory.maximum - machine.memory.size
    for tag, size in (("size", room), ("block", 2 * 1024 * 1024), ("requested", 0)):
        ET.SubElement(target, tag, unit="b").text = str(size)
    target.insert(1, _node_zero())
    ET.SubElement(element, "alias", name="ua-memory")
    return element


def _node_zero() -> ET.Element:
    node = ET.Element("node")
    node.text = "0"
    return node


def _add_smaller_devices(devices: ET.Element, machine: Machine) -> None:
    if machine.sound:
        ET.SubElement(devices, "sound", model=machine.sound)
    for index in range(machine.usb_redirect):
        redirect = ET.SubElement(devices, "redirdev", bus="usb", type="unix")
        ET.SubElement(redirect, "source", mode="bind", path=f"{machine.run_dir}/usb-{index}.sock")
    if machine.watchdog:
        ET.SubElement(devices, "watchdog", model=machine.watchdog[0], action=machine.watchdog[1])
    balloon = ET.SubElement(devices, "memballoon", model="virtio" if machine.memory.balloon else "none")
    if machine.memory.balloon:
        balloon.set("freePageReporting", "on")
        ET.SubElement(balloon, "stats", period=_BALLOON_PERIOD_SECONDS)
    if machine.rng:
        rng = ET.SubElement(devices, "rng", model="virtio")
        ET.SubElement(rng, "backend", model="random").text = "/dev/urandom"
    for model in machine.panic_devices:
        ET.SubElement(devices, "panic", model=model)
    if machine.vsock_cid:
        vsock = ET.SubElement(devices, "vsock", model="virtio")
        ET.SubElement(vsock, "cid", auto="no", address=str(machine.vsock_cid))
    if machine.memory.maximum > machine.memory.size:
        devices.append(memory_element(machine))

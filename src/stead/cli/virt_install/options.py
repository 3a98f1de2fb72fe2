"""Every option of virt-install: those we take, with their sub-options, and those we refuse, with the reason. Pure data.

Names follow virt-install(1) of virt-manager 5; dotted sub-option names are virt-install's own for the same thing.
`OWN` are Stead's additions. `cli.create` makes command-line options of all of them.
"""

from __future__ import annotations

from stead.cli.virt_install.suboptions import Option

_LISTENS = "the display is reached through the API only (`stead vnc NAME`); no VNC port listens on TCP"
_HOST_LAYOUT = "placement on CPUs and NUMA nodes of a host is not offered yet"
_ONE_BUS = "addresses of devices are given by the hypervisor"

MACHINE = (
    Option(flag="--name", spellings=("-n",), text="name of the machine"),
    Option(
        flag="--memory", spellings=("--ram", "-r"), lead="memory", text="memory in MiB, or a quantity such as 4Gi",
        known={
            "memory": "memory at the start: MiB or a quantity",
            "maxmemory": "the most that the running machine can be given",
        },
        aliases={"currentMemory": "memory"},
        refused={
            "hotplugmemorymax": "maxmemory= says how far memory can grow",
            "hotplugmemoryslots": "maxmemory= says how far memory can grow",
        },
    ),
    Option(
        flag="--memorybacking", text="what guest memory is made of",
        known={"hugepages": "on takes pages from the host's huge pages", "size": "page size, such as 2Mi or 1Gi"},
        aliases={"hugepages.page.size": "size", "hugepages.page0.size": "size"},
        refused={
            "nodeset": _HOST_LAYOUT, "nosharepages": "the host decides", "locked": "memory is not locked",
            "access.mode": "shared memory serves --filesystem, which is not offered yet",
            "source.type": "shared memory serves --filesystem, which is not offered yet",
        },
    ),
    Option(
        flag="--vcpus", lead="vcpus", text="number of virtual CPUs and their topology",
        known={
            "vcpus": "CPUs at the start", "maxvcpus": "the most that the running machine can be given",
            "sockets": "sockets", "cores": "cores a socket", "threads": "threads a core",
        },
        aliases={"vcpu.current": "vcpus", "current": "vcpus"},
        refused={
            "dies": "topology is sockets, cores and threads", "clusters": "topology is sockets, cores and threads",
            "cpuset": _HOST_LAYOUT, "vcpu.cpuset": _HOST_LAYOUT, "placement": _HOST_LAYOUT,
        },
    ),
    Option(
        flag="--cpu", lead="model", takes_words=True,
        text="model: host-passthrough, host-model, maximum or a name; then +feature, -feature, policy=feature",
        known={
            "model": "host-passthrough, host-model, maximum or the name of a model",
            "force": "a feature to force", "require": "a feature to require", "optional": "a feature to take if there",
            "disable": "a feature to leave out", "forbid": "a feature that the host must not have",
            "topology.sockets": "sockets", "topology.cores": "cores a socket", "topology.threads": "threads a core",
        },
        aliases={"mode": "model"},
        refused={
            "match": "a model is matched exactly", "vendor": "the model says the vendor", "check": "always checked",
            "migratable": "not offered", "cache.mode": "not offered", "cell": _HOST_LAYOUT,
            "numa.cell": _HOST_LAYOUT, "secure": "not offered",
        },
    ),
    Option(
        flag="--osinfo", spellings=("--os-variant",), lead="name", text="the guest's system: chooses the preference",
        known={
            "name": "an id of libosinfo (ubuntu24.04) or a preference (fedora, windows.11)",
            "detect": "on: from the tree or image, else `linux`",
            "require": "on: refuse when nothing is detected",
        },
        aliases={"short-id": "name", "id": "name"},
    ),
    Option(flag="--machine", lead="type", text="chipset", known={"type": "q35 or a versioned pc-q35 type"}),
    Option(flag="--arch", text="architecture: x86_64, aarch64 or s390x"),
    Option(flag="--virt-type", text="kvm or qemu"),
    Option(
        flag="--metadata", text="what people know the machine by",
        known={"title": "a title", "description": "a description", "uuid": "UUID that the guest sees"},
        refused={"name": "give --name", "genid": "not offered"},
    ),
    Option(flag="--description", text="a description"),
    Option(flag="--uuid", text="UUID that the guest sees"),
    Option(flag="--iothreads", lead="iothreads", text="I/O threads of the disks", known={"iothreads": "how many"}),
    Option(
        flag="--features", text="features of the platform",
        known={
            "acpi": "on or off", "apic": "on or off", "smm.state": "on or off",
            "kvm.hidden.state": "on hides KVM from the guest",
            "hyperv.relaxed.state": "on or off", "hyperv.vapic.state": "on or off",
            "hyperv.spinlocks.state": "on or off", "hyperv.spinlocks.retries": "a number",
            "hyperv.vpindex.state": "on or off", "hyperv.synic.state": "on or off",
            "hyperv.reset.state": "on or off", "hyperv.runtime.state": "on or off",
            "hyperv.frequencies.state": "on or off", "hyperv.ipi.state": "on or off",
        },
        aliases={
            "smm": "smm.state", "kvm_hidden": "kvm.hidden.state", "kvm.hidden": "kvm.hidden.state",
            "hyperv_relaxed": "hyperv.relaxed.state", "hyperv_vapic": "hyperv.vapic.state",
            "hyperv_spinlocks": "hyperv.spinlocks.state",
            "hyperv_spinlocks_retries": "hyperv.spinlocks.retries", "hyperv_vpindex": "hyperv.vpindex.state",
            "hyperv_synic": "hyperv.synic.state", "hyperv_reset": "hyperv.reset.state",
        },
        refused={
            "pae": "always there", "eoi": "not offered", "pmu": "not offered", "vmport": "not offered",
            "gic_version": "not offered", "hap": "belongs to Xen", "viridian": "belongs to Xen",
        },
    ),
    Option(
        flag="--clock", lead="offset", text="the guest's clock and timers",
        known={
            "offset": "utc or timezone", "timezone": "such as Europe/Berlin",
            "hpet_present": "on or off", "pit_tickpolicy": "delay, catchup or discard",
            "rtc_tickpolicy": "delay or catchup", "rtc_present": "on or off", "pit_present": "on or off",
            "kvmclock_present": "on or off", "hypervclock_present": "on or off",
        },
        refused={"adjustment": "not offered", "tsc_present": "not offered", "platform_present": "not offered"},
    ),
)  # fmt: skip

INSTALLATION = (
    Option(flag="--cdrom", spellings=("-c",), text="an ISO file below a registered directory, or a URL"),
    Option(
        flag="--location", spellings=("-l",), lead="url", text="URL of an installer tree, with its kernel and initrd",
        known={
            "url": "http or https URL of the tree", "kernel": "path of the kernel below it",
            "initrd": "path of the initrd below it",
        },
    ),
    Option(flag="--extra-args", spellings=("-x",), text="kernel arguments for the installer of --location"),
    Option(flag="--import", value="none", text="no installation: the first disk has a system"),
    Option(flag="--pxe", value="none", text="install from the network: an empty disk falls through to it"),
    Option(
        flag="--boot", takes_words=True, text="firmware, boot order, or a kernel",
        known={
            "uefi": "on: UEFI", "firmware": "efi or bios", "secure-boot": "on: UEFI with secure boot",
            "hd": "boot from disks", "cdrom": "boot from CD-ROMs", "network": "boot from the network",
            "kernel": "kernel file directly in a registered directory, or http URL",
            "initrd": "initrd file beside the kernel", "kernel_args": "the kernel's command line",
            "bios.useserial": "on: the BIOS speaks on the serial console",
            "feature0.name": "secure-boot", "feature0.enabled": "yes or no",
        },
        aliases={
            "firmware.feature0.name": "feature0.name", "firmware.feature0.enabled": "feature0.enabled",
            "cmdline": "kernel_args", "extra_args": "kernel_args", "useserial": "bios.useserial",
        },
        refused={
            "fd": "floppy disks are not offered", "menu": "there is no boot menu", "bootmenu.enable": "there is none",
            "loader": "the loader follows from uefi and secure-boot", "nvram": "kept by Stead",
            "loader_ro": "kept by Stead", "loader_type": "kept by Stead", "loader_secure": "give secure-boot=on",
            "nvram_template": "kept by Stead", "nvram.template": "kept by Stead",
            "loader.secure": "give secure-boot=on",
            "dtb": "not offered", "init": "containers are not offered", "rebootTimeout": "not offered",
            "rebuild": "not offered", "smbios_mode": "not offered", "machine": "give --machine",
        },
    ),
    Option(
        flag="--cloud-init", value="optional", text="user data for cloud-init; bare: a generated root password",
        known={
            "user-data": "file with user data, taken as it is", "meta-data": "file with meta data",
            "network-config": "file with the network configuration",
            "root-password-generate": "on: make a root password and print it once",
            "root-password-file": "file with root's password",
            "root-ssh-key": "file with root's public key",
            "clouduser-ssh-key": "file with the public key of the image's own user",
            "disable": "on: cloud-init runs on the first boot only",
        },
    ),
    Option(
        flag="--install", lead="os", text="options of the installation",
        known={"no_install": "on: as --import", "kernel": "as --location kernel=", "initrd": "as --location initrd=",
               "kernel_args": "as --extra-args", "bootdev": "hd, cdrom or network"},
        refused={
            "os": "Stead keeps no list of installer trees; give the tree with --location URL",
            "kernel_args_overwrite": "kernel_args adds to what the installer needs",
        },
    ),
    Option(flag="--noreboot", value="none", text="stay off after the installation"),
    Option(flag="--autostart", value="none", text="start with the host and keep running (runStrategy Always)"),
    Option(
        flag="--check", text="checks that virt-install makes",
        known={
            "disk_size": "off: no effect, disks are sparse", "mac_in_use": "off: no effect",
            "all": "off: no effect on files in use, which are never taken",
        },
        refused={
            "path_in_use": "a file that another machine uses is never taken",
            "path_exists": "an existing file is never overwritten",
        },
    ),
)  # fmt: skip

DEVICES = (
    Option(
        flag="--disk", lead="path", text="a disk: size= alone makes a new one",
        known={
            "path": "file in a registered directory, or http URL of an image",
            "size": "size in GiB, or a quantity such as 30Gi", "format": "raw or qcow2", "pool": "a registered pool",
            "vol": "POOL/FILE", "backing_store": "image to clone: NAME or NAMESPACE/NAME of a DataSource",
            "bus": "virtio, sata, scsi or usb", "cache": "none, writethrough or writeback",
            "io": "native or threads", "readonly": "on or off", "shareable": "on or off",
            "serial": "serial number that the guest sees", "boot.order": "place in the boot order, from 1",
            "device": "disk or cdrom", "error_policy": "stop, ignore, report or enospace", "sparse": "yes",
            "discard": "unmap", "removable": "off",
        },
        aliases={
            "target.bus": "bus", "driver.cache": "cache", "driver.io": "io", "driver.type": "format",
            "boot_order": "boot.order", "driver.error_policy": "error_policy", "driver.discard": "discard",
            "source.file": "path", "source": "path",
        },
        refused={
            "target": "names are given by the guest", "perms": "give readonly=on or shareable=on",
            "target.dev": "names are given by the guest",
            "backing_format": "an image's format is known", "backing_store_path": "name an image",
            "detect_zeroes": "not offered", "driver.detect_zeroes": "not offered", "geometry.cyls": "not offered",
            "iotune.total_bytes_sec": "not offered yet", "iotune.read_bytes_sec": "not offered yet",
            "iotune.write_bytes_sec": "not offered yet", "iotune.total_iops_sec": "not offered yet",
            "snapshot_policy": "not offered", "startup_policy": "not offered", "address.type": _ONE_BUS,
            "address.bus": _ONE_BUS, "address.unit": _ONE_BUS, "driver.queues": "set by the hypervisor",
            "driver.iothread": "give --iothreads", "seclabel.model": "each machine has its own label",
            "source.startupPolicy": "not offered", "type": "disks are volumes of pools, URLs or images",
            "source.protocol": "network disks are not offered yet", "source.host.name": "not offered yet",
            "source.pool": "give pool=", "source.volume": "give vol=POOL/FILE", "wwn": "not offered yet",
        },
    ),
    Option(flag="--nodisks", value="none", text="no disk at all"),
    Option(
        flag="--network", spellings=("-w",), lead="type", text="a network card",
        known={
            "type": "network, bridge, user or none (first word); or a network",
            "network": "default (the pod network) or a network attachment",
            "bridge": "an existing bridge of the host", "model": "virtio, e1000e, e1000 or rtl8139",
            "mac": "MAC address", "boot.order": "place in the boot order, from 1", "link.state": "up or down",
        },
        aliases={
            "model.type": "model", "mac.address": "mac", "boot_order": "boot.order", "source": "network",
            "source.network": "network", "source.bridge": "bridge", "link_state": "link.state",
        },
        refused={
            "target": "names on the host are Stead's", "target.dev": "names on the host are Stead's",
            "virtualport_type": "Open vSwitch is not offered yet",
            "virtualport.type": "Open vSwitch is not offered yet",
            "mtu.size": "follows the network", "filterref": "not offered", "driver_name": "vhost is used where it is",
            "driver.name": "vhost is used where it is", "driver_queues": "not offered yet",
            "driver.queues": "not offered yet", "trustGuestRxFilters": "not offered", "rom_file": "not offered",
            "rom_bar": "not offered", "portgroup": "not offered", "portForward": "use `stead port-forward`",
            "portForward0.proto": "use `stead port-forward`", "source_mode": "macvtap is not offered; name a bridge",
            "source.mode": "macvtap is not offered; name a bridge",
            "source.dev": "macvtap is not offered; name a bridge",
            "hostdev": "passing devices through is not offered yet", "address.type": _ONE_BUS,
        },
    ),
    Option(flag="--nonetworks", value="none", text="no network card"),
    Option(flag="--mac", text="MAC address of the first network card"),
    Option(flag="--bridge", spellings=("-b",), text="an existing bridge of the host"),
    Option(
        flag="--graphics", lead="type", text="vnc or none",
        known={"type": "vnc or none", "listen": "127.0.0.1, localhost, socket or none", "port": "-1",
               "autoport": "yes"},
        refused={
            "password": "who may see the display is decided by the API's permissions",
            "passwordvalidto": "who may see the display is decided by the API's permissions",
            "tlsport": _LISTENS, "tlsPort": _LISTENS, "websocket": _LISTENS, "socket": "the socket is Stead's own",
            "keymap": "the viewer's keyboard is used", "gl": "3D is not offered", "gl.enable": "3D is not offered",
            "rendernode": "3D is not offered", "channel": "SPICE is not offered", "image_compression": "not offered",
            "clipboard_copypaste": "not offered yet", "mouse_mode": "not offered", "streaming_mode": "not offered",
            "filetransfer_enable": "not offered", "zlib_compression": "not offered",
        },
    ),
    Option(flag="--nographics", value="none", text="no display; the serial console only"),
    Option(flag="--vnc", value="none", text="a VNC display"),
    Option(flag="--video", lead="model", text="graphics card",
           known={"model": "vga, virtio, bochs, cirrus, ramfb or none"}, aliases={"model.type": "model"},
           refused={"accel3d": "3D is not offered", "model.acceleration.accel3d": "3D is not offered",
                    "vram": "set by the hypervisor", "heads": "one"}),
    Option(flag="--console", lead="type", text="the serial console", known={
        "type": "pty or none", "target.type": "serial"}, aliases={"target_type": "target.type"},
        refused={"path": "the console is reached by `stead console`", "log.file": "not offered"}),
    Option(flag="--serial", lead="type", text="the serial port", known={"type": "pty or none"},
           refused={"path": "the console is reached by `stead console`", "host": "no serial port listens on TCP",
                    "protocol": "no serial port listens on TCP", "mode": "no serial port listens on TCP",
                    "log.file": "not offered", "target.type": "given by the architecture"}),
    Option(flag="--channel", lead="type", text="channel of the guest agent (always there)",
           known={"type": "unix or none", "target.type": "virtio", "name": "org.qemu.guest_agent.0",
                  "mode": "bind"},
           aliases={"target_type": "target.type", "target.name": "name"},
           refused={"path": "the socket is Stead's own", "source.path": "the socket is Stead's own"}),
    Option(flag="--tpm", lead="type", text="a trusted platform module",
           known={"type": "emulator, default or none", "version": "2.0", "model": "tpm-tis or tpm-crb"},
           aliases={"backend.type": "type", "backend.version": "version"},
           refused={"path": "a module of the host is not passed through", "backend.persistent_state":
                    "state that outlives the instance is not honoured yet"}),
    Option(flag="--rng", lead="type", text="a source of random numbers",
           known={"type": "/dev/urandom, /dev/random, builtin, random or none", "device": "/dev/urandom"},
           aliases={"backend.model": "type", "model": "type"},
           refused={"rate_bytes": "not offered", "rate_period": "not offered", "rate.bytes": "not offered",
                    "backend_host": "not offered"}),
    Option(flag="--watchdog", lead="model", text="a watchdog", known={
        "model": "i6300esb, default or none", "action": "reset, poweroff or shutdown"}),
    Option(flag="--sound", lead="model", text="a sound card", known={"model": "ich9, ac97, default or none"},
           aliases={"model.type": "model"}, refused={"codec": "not offered"}),
    Option(flag="--memballoon", lead="model", text="the memory balloon", known={"model": "virtio or none"},
           refused={"autodeflate": "not offered", "stats.period": "set by Stead", "freePageReporting": "set by Stead"}),
    Option(flag="--controller", lead="type", text="a controller (those that a machine has anyway)",
           known={"type": "usb, scsi, sata, pci or virtio-serial", "model": "such as virtio-scsi or qemu-xhci"},
           refused={"index": _ONE_BUS, "address": _ONE_BUS, "master": _ONE_BUS, "vectors": "not offered",
                    "driver.queues": "not offered yet"}),
    Option(flag="--input", lead="type", text="an input device", known={"type": "tablet or none",
           "bus": "usb or virtio"}),
    Option(flag="--hostdev", spellings=("--host-device",), lead="name", text="passing a device through",
           known={"name": "none"}, refused={"type": "passing devices of the host through is not offered yet"}),
)  # fmt: skip

RUNNING = (
    Option(flag="--autoconsole", text="text or none: what to connect to after creation"),
    Option(flag="--noautoconsole", value="none", text="do not connect to the console"),
    Option(flag="--wait", value="optional", text="minutes to wait for the end of the installation; bare: no limit"),
    Option(flag="--quiet", spellings=("-q",), value="none", text="errors only"),
    Option(flag="--debug", spellings=("-d",), value="none", text="say each step"),
    Option(flag="--connect", text="qemu:///system only; the API is chosen by --kubeconfig"),
    Option(flag="--hvm", spellings=("-v",), value="none", text="full virtualisation (always)"),
)

OWN = (
    Option(flag="--instancetype", text="size by an instancetype, instead of --memory and --vcpus"),
    Option(flag="--preference", text="preference, instead of --osinfo"),
    Option(flag="--image", text="image that the first disk is cloned from (`stead image list`)"),
    Option(flag="--ssh-key", text="public key, or a file with keys, for the image's own user"),
)

ACCEPTED = (*MACHINE, *INSTALLATION, *DEVICES, *RUNNING, *OWN)
BY_FLAG = {option.flag: option for option in ACCEPTED}

#: options that are refused by name → reason
REFUSED = {
    "--print-xml": "use --dry-run -o yaml, which prints the manifests; `stead xml NAME` prints a running machine's XML",
    "--print-step": "use --dry-run -o yaml, which prints the manifests",
    "--transient": "a machine that leaves nothing behind is a VirtualMachineInstance; apply one with `stead apply`",
    "--reinstall": "delete the machine and create it anew",
    "--destroy-on-exit": "leaving the console does not end a machine; `stead delete vm NAME` does",
    "--unattended": "answer files are not generated; serve one and name it with --extra-args",
    "--initrd-inject": "the tree's initrd is booted as it is; serve the file and name it with --extra-args",
    "--filesystem": "sharing directories of the host is not offered yet",
    "--numatune": "placement on NUMA nodes is not offered yet",
    "--cputune": "placement on CPUs is not offered yet; give an instancetype with dedicated CPUs",
    "--memtune": "memory limits follow from --memory",
    "--blkiotune": "limits of disk traffic are not offered yet",
    "--security": "each machine has a user and a label of its own",
    "--seclabel": "each machine has a user and a label of its own",
    "--launchSecurity": "confidential machines are not offered yet",
    "--resource": "each machine has a control group of its own",
    "--sysinfo": "give --metadata uuid=; other SMBIOS strings go into spec.template.spec.domain.chassis",
    "--events": "what follows the guest's end is the run strategy: --autostart or not",
    "--pm": "sleep states are off",
    "--keywrap": "belongs to s390x and is not offered",
    "--idmap": "containers are not offered",
    "--smartcard": "smart cards are not offered",
    "--redirdev": "redirecting USB devices is not offered yet",
    "--panic": "set spec.template.spec.domain.devices.panicDevices in the manifest",
    "--shmem": "shared memory devices are not offered",
    "--memdev": "memory devices are added by maxmemory=",
    "--vsock": "vsock is not offered yet",
    "--iommu": "an emulated IOMMU is not offered",
    "--pstore": "pstore is not offered",
    "--audio": "sound stays in the machine; --sound adds a card",
    "--parallel": "parallel ports are not offered",
    "--qemu-commandline": "arguments for QEMU are not passed through",
    "--xml": "libvirt's XML is made from the manifest; edit that (--dry-run -o yaml)",
    "--container": "containers are not offered",
    "--paravirt": "Xen is not offered",
    "--os-type": "give --osinfo",
    "--file": "give --disk path=",
    "--file-size": "give --disk size=",
    "--nonsparse": "disks are sparse",
    "--keymap": "the viewer's keyboard is used",
    "--sdl": "a window on the host is not offered; use --graphics vnc",
    "--accelerate": "KVM is used wherever it works",
    "--livecd": "give --cdrom FILE with --nodisks",
    "--soundhw": "give --sound",
    "--prompt": "nothing is asked",
    "--force": "an existing file or machine is never overwritten",
    "--cpuset": "placement on CPUs is not offered yet",
}

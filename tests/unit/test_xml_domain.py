"""Domain XML against golden files: what each field of Machine becomes, read by people in review.

`python -m tests.unit.test_xml_domain --regenerate` writes the files anew from the code; the diff is then reviewed.
`test_libvirt_takes_every_golden_file` has a real libvirt judge them.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import libvirt
import msgspec
import pytest
from tests.libvirt_host import libvirt_host

from stead.hypervisor.contract import Cpu, Disk, Firmware, Graphics, Isolation, Machine, Memory, Nic
from stead.hypervisor.libvirt.firmware import choose_template
from stead.hypervisor.libvirt.hotplug import decide_changes
from stead.hypervisor.libvirt.xml import definition_digest, domain_name, domain_xml, fingerprint, mark_from_xml, mark_of

GOLDEN = Path(__file__).parent.parent / "golden" / "xml"
UUID = "0a3b2a52-5d0e-4f6c-9d3a-1f2e3d4c5b6a"
RUN = "/run/stead/machines/web"


def machine(**more: object) -> Machine:
    """The plainest machine, changed by `more`."""
    values: dict[str, object] = {
        "uid": UUID, "namespace": "default", "name": "web", "cpu": Cpu(), "memory": Memory(size=1 << 30),
        "run_dir": RUN, **more,
    }  # fmt: skip
    return Machine(**values)  # type: ignore[arg-type]  # by name


ROOT = Disk(name="root", path="/pool/root.img")
CASES = {
    "plain": machine(),
    "usual": machine(
        cpu=Cpu(sockets=1, cores=2, mode="host-passthrough"),
        disks=(
            ROOT,
            Disk(name="cloudinit", path="/pool/seed.iso", device="cdrom", bus="sata", read_only=True),
            Disk(name="boot", path="/run/x/overlay.qcow2", format="qcow2", base="/cache/a.img", base_format="qcow2"),
        ),
        nics=(Nic(name="default", mac="02:00:00:00:00:01", backend="tap", target="s1234tabcdef012", mtu=1450),),
        serial_socket=f"{RUN}/serial.sock",
        serial_log="/var/log/stead/web.log",
        graphics=Graphics(vnc_socket=f"{RUN}/vnc.sock"),
        rng=True,
        isolation=Isolation(uid=70001, gid=70001, memory_limit=2 << 30, cpu_shares=1024, pids_limit=300),
    ),
    "emulated": machine(
        software_emulation=True,
        features=(("acpi", ()), ("hyperv.relaxed", (("state", "on"),)), ("kvm.hidden", (("state", "on"),))),
        clock_timers=(("kvmclock", (("present", "yes"),)), ("rtc", (("tickpolicy", "catchup"),))),
    ),
    "windows": machine(
        cpu=Cpu(sockets=2, cores=2, threads=1, mode="custom", model="Skylake-Client", features=(("vmx", "disable"),)),
        firmware=Firmware(
            kind="efi", secure_boot=True, nvram="/state/nvram.fd", uuid="11111111-2222-3333-4444-555555555555",
            serial="S-1", bios_serial=False,
            sysinfo=(("system.manufacturer", "Stead"), ("chassis.asset", "A"), ("oemStrings.0", "o")),
        ),
        tpm="tpm-crb", clock_offset="localtime", inputs=(("tablet", "usb"),), sound="ich9",
        features=(
            ("acpi", ()), ("apic", (("eoi", "on"),)), ("smm", (("state", "on"),)),
            ("hyperv.relaxed", (("state", "on"),)), ("hyperv.spinlocks", (("state", "on"), ("retries", "8191"))),
        ),
        clock_timers=(("hypervclock", (("present", "yes"),)), ("hpet", (("present", "no"),))),
        graphics=Graphics(vnc_socket=f"{RUN}/vnc.sock", video="virtio"),
        disks=(Disk(name="c", path="/dev/vg/c", source="block", bus="sata", cache="none", io="native"),),
        nics=(Nic(name="lan", mac="02:00:00:00:00:02", backend="bridge", target="br0", model="e1000e"),),
    ),
    "room-to-grow": machine(
        cpu=Cpu(sockets=2, max_sockets=8, mode="host-model"),
        memory=Memory(size=1 << 30, maximum=4 << 30, shared=True), pci_placeholders=4, disks=(ROOT,),
    ),
    "queues": machine(
        cpu=Cpu(sockets=2), disks=(msgspec.structs.replace(ROOT, queues=2),),
        isolation=Isolation(uid=70001, gid=70001, cpu_shares=2048, cpu_quota=1500),
    ),
    "tuned": machine(
        cpu=Cpu(cores=2, dedicated=(4, 5), emulator_cpus=(6, 7)),
        memory=Memory(size=1 << 30, hugepage_size=2 << 20, balloon=False), io_threads=3,
        disks=(
            msgspec.structs.replace(ROOT, dedicated_io_thread=True, serial="root-1", boot_order=1, shareable=True),
            Disk(name="a", path="/pool/a.img"), Disk(name="b", path="/pool/b.img", logical_block_size=4096),
            Disk(name="s", path="/pool/s.img", bus="scsi", error_policy="report", discard="ignore"),
        ),
        watchdog=("i6300esb", "poweroff"), vsock_cid=7, usb_redirect=2, panic_devices=("isa",),
        isolation=Isolation(cgroup_parent="/machine/tenant"), reboot_action="destroy",
        clock_offset="variable:-3600", guest_agent=False,
        nics=(
            Nic(name="n", mac="02:00:00:00:00:03", backend="passt", target="", queues=4, boot_order=2, acpi_index=3,
                passt={"address": "10.0.2.2", "ports": [["tcp", 2222, 22]]}),
            Nic(name="m", mac="02:00:00:00:00:04", backend="tap", target="t1", link_up=False,
                pci_address="0000:05:00.0"),
        ),
    ),
    "kernel": machine(
        machine_type="pc",
        firmware=Firmware(kernel="/boot/k", initrd="/boot/i", cmdline="console=ttyS0 quiet", bios_serial=True),
        clock_offset="timezone:Europe/Berlin",
        serial_socket=f"{RUN}/serial.sock",
        disks=(Disk(name="empty", path="", device="cdrom", bus="sata", tray_open=True),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_domain_xml_is_as_reviewed(name: str) -> None:
    assert domain_xml(CASES[name]) == (GOLDEN / f"{name}.xml").read_text()


@pytest.mark.guest
async def test_libvirt_takes_every_golden_file(tmp_path: Path) -> None:
    """Emulated, since KVM is not everywhere; what only KVM knows is left to the schema (`--validate`)."""
    async with libvirt_host(tmp_path) as host:
        version = int(libvirt.getVersion())
        for name, desired in CASES.items():
            path = host.root / f"{name}.xml"
            nics = tuple(nic for nic in desired.nics if nic.backend != "passt" or version >= 9_001_000)
            emulated = msgspec.structs.replace(desired, software_emulation=True, nics=nics)
            path.write_text(domain_xml(emulated))
            await host.virsh("define", "--validate", str(path))
            mark = mark_from_xml(await host.virsh("dumpxml", "--inactive", "default_web"))
            assert mark is not None
            assert mark.machine == emulated
            await host.virsh("undefine", "default_web", "--keep-nvram")


def test_the_mark_tells_what_a_domain_was_made_from() -> None:
    for desired in CASES.values():
        mark = mark_from_xml(domain_xml(desired))
        assert mark is not None
        assert mark.machine == desired
        assert mark.fingerprint == fingerprint(desired)
    assert mark_from_xml("<domain><metadata/></domain>") is None
    assert fingerprint(machine()) != fingerprint(machine(rng=True))


def test_machines_of_several_steads_have_names_and_marks_of_their_own() -> None:
    usual, named = machine(), machine(metadata={"instance": "stead"})
    second = machine(metadata={"instance": "two"})
    assert domain_name(usual) == domain_name(named) == "default_web"
    assert domain_name(second) == "two_default_web"
    for each, instance in ((usual, "stead"), (named, "stead"), (second, "two")):
        mark = mark_from_xml(domain_xml(each))
        assert mark == mark_of(each)
        assert mark.instance == instance
    unreadable = domain_xml(second).replace('"cpu":', '"brain":').replace("&quot;cpu&quot;:", "&quot;brain&quot;:")
    mark = mark_from_xml(unreadable)
    assert mark is not None
    assert (mark.machine, mark.instance) == (None, "two"), "a machine of another release is still known as another's"


def test_a_foreign_edit_changes_the_digest_and_our_mark_does_not() -> None:
    text = domain_xml(machine())
    assert definition_digest(text) != definition_digest(text.replace("<on_crash>destroy", "<on_crash>restart"))
    assert definition_digest(text) == definition_digest(domain_xml(machine(metadata={"note": "another"})))


def test_text_from_users_is_data_never_markup() -> None:
    hostile = "\"><disk/>&'<!--"
    root = ET.fromstring(domain_xml(machine(firmware=Firmware(kernel="/k", cmdline=hostile))))
    assert root.findtext("os/cmdline") == hostile
    assert root.find("devices/disk") is None


def test_nothing_listens_on_tcp() -> None:
    for desired in CASES.values():
        root = ET.fromstring(domain_xml(desired))
        assert {each.get("type") for each in root.iterfind("devices/serial")} <= {"unix"}
        assert {each.get("type") for each in root.iterfind("devices/graphics/listen")} <= {"socket"}


def test_changes_in_place_and_those_that_need_a_restart() -> None:
    before = CASES["room-to-grow"]
    grown = msgspec.structs.replace(
        before,
        cpu=msgspec.structs.replace(before.cpu, sockets=4),
        memory=msgspec.structs.replace(before.memory, size=2 << 30),
        disks=(ROOT, Disk(name="more", path="/pool/more.img")),
    )
    changes = decide_changes(before, grown)
    assert (changes.vcpus, changes.memory, changes.restart) == (4, 1 << 30, ())
    assert [disk.name for disk in changes.attach_disks] == ["more"]
    assert [disk.name for disk in decide_changes(grown, before).detach_disks] == ["more"]
    assert set(decide_changes(grown, before).restart) == {"cpu", "memory"}
    assert decide_changes(before, msgspec.structs.replace(before, rng=True)).restart == ("rng",)
    usual = CASES["usual"]
    disk = msgspec.structs.replace(usual.disks[1], path="/pool/other.iso")
    swapped = msgspec.structs.replace(usual, disks=(usual.disks[0], disk, usual.disks[2]))
    assert decide_changes(usual, swapped).media == (disk,)
    cut = msgspec.structs.replace(usual, nics=(msgspec.structs.replace(usual.nics[0], link_up=False),))
    assert [nic.name for nic in decide_changes(usual, cut).links] == ["default"]


def test_firmware_is_chosen_as_its_descriptors_say() -> None:
    def descriptor(features: list[str], template: str) -> dict[str, object]:
        return {
            "interface-types": ["uefi"],
            "mapping": {"device": "flash", "nvram-template": {"filename": template}},
            "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
            "features": features,
        }

    found = [
        descriptor(["secure-boot", "enrolled-keys"], "/ms"),
        descriptor(["secure-boot"], "/sb"),
        descriptor([], "/v"),
    ]
    assert choose_template(machine(firmware=Firmware(kind="efi")), found) == "/v"
    assert choose_template(machine(firmware=Firmware(kind="efi", secure_boot=True)), found) == "/ms"
    assert choose_template(machine(machine_type="pc"), found) == ""


def regenerate() -> None:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, desired in CASES.items():
        (GOLDEN / f"{name}.xml").write_text(domain_xml(desired))


if __name__ == "__main__" and "--regenerate" in sys.argv:
    regenerate()

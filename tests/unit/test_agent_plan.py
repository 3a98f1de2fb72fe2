"""The plan: what a VMI becomes at the hypervisor, and that nothing of it is dropped in silence."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.agent_stand_ins import CAPABILITIES

from stead.agent.plan import HostSide, field_path, machine_from
from stead.agent.prepared import Prepared, PreparedVolume, Unsupported

SIDE = HostSide(instance="stead", capabilities=CAPABILITIES)
PREPARED = Prepared(
    uid=5001, gid=5001, directory="/m/u", run_dir="/r/u",
    volumes=(
        PreparedVolume(
            name="root", kind="containerDisk", path="/m/u/root.qcow2", format="qcow2", base="/c/b", base_format="raw"
        ),
        PreparedVolume(name="seed", kind="cloudInitNoCloud", path="/m/u/seed.iso", read_only=True, direct_io=False),
    ),
)  # fmt: skip


def vmi(domain: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    body = {"memory": {"guest": "128Mi"}, "devices": {}} | (domain or {})
    metadata = {"name": "web", "namespace": "ns", "uid": "11111111-2222-3333-4444-555555555555"}
    return {"metadata": metadata, "spec": {"domain": body, **spec}}


def plan(domain: dict[str, Any] | None = None, **spec: Any) -> Any:
    return machine_from(vmi(domain, **spec), PREPARED, SIDE)


def test_a_small_instance_gets_one_cpu_vga_a_console_and_its_limits() -> None:
    machine = plan()
    assert (machine.cpu.sockets, machine.cpu.cores, machine.cpu.threads) == (1, 1, 1)
    assert machine.cpu.mode == "maximum"  # host-model means nothing under emulation
    assert machine.memory.size == 128 * 1024**2
    assert machine.graphics is not None
    assert machine.graphics.video == "vga"
    assert machine.serial_socket.startswith("/r/u/")
    assert machine.isolation.uid == 5001
    assert machine.isolation.memory_limit > machine.memory.size
    assert ("acpi", ()) in machine.features
    assert machine.software_emulation


def test_the_same_instance_gives_the_same_machine() -> None:
    assert plan() == plan()
    assert msgspec.json.encode(plan()) == msgspec.json.encode(plan())


def test_disks_keep_order_names_buses_and_formats() -> None:
    devices = {
        "disks": [
            {"name": "root", "disk": {"bus": "virtio"}, "bootOrder": 1, "serial": "abc"},
            {"name": "seed", "cdrom": {"bus": "sata"}},
        ]
    }
    root, seed = plan({"devices": devices}).disks
    assert (root.name, root.bus, root.format, root.base, root.boot_order, root.serial) == (
        "root", "virtio", "qcow2", "/c/b", 1, "abc",
    )  # fmt: skip
    assert root.cache == "none"
    assert root.io == "threads"
    assert (seed.device, seed.read_only, seed.cache) == ("cdrom", True, "writethrough")


def test_an_empty_cdrom_is_an_open_slot_but_a_disk_without_volume_is_refused() -> None:
    assert plan({"devices": {"disks": [{"name": "media", "cdrom": {"tray": "open"}}]}}).disks[0].path == ""
    with pytest.raises(Unsupported, match=r"disks\[0\]"):
        plan({"devices": {"disks": [{"name": "nothing", "disk": {}}]}})


@pytest.mark.parametrize(
    ("domain", "field"),
    [
        ({"cpu": {"dedicatedCpuPlacement": True}}, "spec.domain.cpu.dedicatedCpuPlacement"),
        ({"devices": {"gpus": [{"name": "g"}]}}, "spec.domain.devices.gpus"),
        ({"launchSecurity": {"sev": {}}}, "spec.domain.launchSecurity"),
        ({"launchSecurity": {}}, "spec.domain.launchSecurity"),
        ({"devices": {"interfaces": [{"name": "a", "sriov": {}}]}}, "spec.domain.devices.interfaces[0].sriov"),
        ({"cpu": {"model": "Nonsuch"}}, "spec.domain.cpu.model"),
        ({"devices": {"autoattachVSOCK": True}}, "spec.domain.devices.autoattachVSOCK"),
        (
            {"devices": {"disks": [{"name": "root", "blockSize": {"matchVolume": {}}}]}},
            "spec.domain.devices.disks[0].blockSize.matchVolume",
        ),
        ({"resources": {"limits": {"example.com/gpu": "1"}}}, "spec.domain.resources.limits.example.com/gpu"),
    ],
)
def test_what_is_not_honoured_is_refused_by_its_path(domain: dict[str, Any], field: str) -> None:
    with pytest.raises(Unsupported) as caught:
        plan(domain)
    assert caught.value.field == field
    assert field in str(caught.value)


def test_values_that_say_nothing_are_no_reason_to_refuse() -> None:
    plan({"cpu": {"dedicatedCpuPlacement": False, "cores": 2}, "devices": {"gpus": [], "hostDevices": None}})


def test_firmware_devices_clock_and_features_reach_the_machine() -> None:
    machine = plan(
        {
            "firmware": {"bootloader": {"efi": {"secureBoot": False}}, "uuid": "u-1", "serial": "s-1"},
            "devices": {
                "tpm": {},
                "rng": {},
                "watchdog": {"i6300esb": {"action": "poweroff"}},
                "sound": {"model": "ac97"},
            },
            "clock": {
                "timezone": "Europe/Rome",
                "timer": {"hpet": {"present": False}, "rtc": {"tickPolicy": "catchup"}},
            },
            "features": {
                "smm": {"enabled": True},
                "hyperv": {"spinlocks": {"spinlocks": 8191}, "synictimer": {"direct": {}}},
            },
            "chassis": {"asset": "A-17"},
            "rebootPolicy": "Terminate",
        }
    )
    assert (machine.firmware.kind, machine.firmware.secure_boot) == ("efi", False)
    assert machine.graphics.video == "bochs"
    assert machine.tpm == "tpm-tis"
    assert machine.rng
    assert machine.watchdog == ("i6300esb", "poweroff")
    assert machine.clock_offset == "timezone:Europe/Rome"
    assert ("hpet", (("present", "no"),)) in machine.clock_timers
    features = dict(machine.features)
    assert dict(features["hyperv.spinlocks"])["retries"] == "8191"
    assert features["hyperv.stimer.direct"] == (("state", "on"),)
    assert ("chassis.asset", "A-17") in machine.firmware.sysinfo
    assert machine.reboot_action == "destroy"


def test_headless_instances_have_neither_screen_nor_serial_port() -> None:
    machine = plan({"devices": {"autoattachGraphicsDevice": False, "autoattachSerialConsole": False}})
    assert machine.graphics is None
    assert machine.serial_socket == ""


def test_queues_limits_hugepages_and_vsock_reach_the_machine() -> None:
    machine = machine_from(
        vmi(
            {
                "cpu": {"sockets": 2, "cores": 2},
                "memory": {"guest": "128Mi", "hugepages": {"pageSize": "2Mi"}},
                "resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}},
                "devices": {
                    "disks": [{"name": "root", "disk": {"bus": "virtio"}}, {"name": "seed", "cdrom": {"bus": "sata"}}],
                    "blockMultiQueue": True,
                    "autoattachVSOCK": True,
                },
            }
        ),
        msgspec.structs.replace(PREPARED, vsock_cid=65540),
        msgspec.structs.replace(SIDE, vsock=True),
    )
    assert [disk.queues for disk in machine.disks] == [4, 0]
    assert machine.isolation.cpu_quota == 1500
    assert machine.isolation.memory_limit > 1 << 30
    assert machine.memory.hugepage_size == 2 << 20
    assert machine.vsock_cid == 65540


def test_what_is_to_outlive_the_instance_lies_in_its_owners_folder() -> None:
    prepared = msgspec.structs.replace(PREPARED, persistent="/state/persistent/vm-uid")
    efi = {"bootloader": {"efi": {"secureBoot": False, "persistent": True}}}
    machine = machine_from(vmi({"firmware": efi, "devices": {"tpm": {"persistent": True}}}), prepared, SIDE)
    assert machine.firmware.nvram == "/state/persistent/vm-uid/nvram.fd"
    assert (machine.tpm, machine.tpm_state) == ("tpm-crb", "/state/persistent/vm-uid/tpm")
    volatile = machine_from(vmi({"firmware": {"bootloader": {"efi": {}}}, "devices": {"tpm": {}}}), prepared, SIDE)
    assert volatile.firmware.nvram.startswith(PREPARED.directory)
    assert (volatile.tpm, volatile.tpm_state) == ("tpm-tis", "")


def test_the_serial_port_is_logged_where_asked_for() -> None:
    assert plan({"devices": {"logSerialConsole": True}}).serial_log == "/m/u/serial0.log"
    assert plan().serial_log == ""


def test_a_drivers_refusal_is_told_in_the_users_words() -> None:
    assert field_path("memory.hugepage_size") == "spec.domain.memory.hugepages.pageSize"
    assert field_path("firmware.nvram") == "spec.domain.firmware"
    assert field_path("novelty") == "novelty"

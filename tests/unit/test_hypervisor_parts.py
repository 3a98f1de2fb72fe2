"""Pieces of the drivers by themselves: the KVM probe, bounded events, error kinds, counters, screenshots."""

from __future__ import annotations

import stat
import zlib
from pathlib import Path

import libvirt
import pytest

from stead.hypervisor.contract import DriverEvent, Failed, NotFound, State, StopReason
from stead.hypervisor.drivers import create
from stead.hypervisor.libvirt import emulation
from stead.hypervisor.libvirt.events import state_from_libvirt
from stead.hypervisor.libvirt.screen import png_from_ppm
from stead.hypervisor.libvirt.statistics import statistics_from_libvirt
from stead.hypervisor.subscribers import QUEUE_LENGTH, Subscribers


def emulator(folder: Path, kvm: str, tcg: str = "exit 33") -> str:
    """A stand-in for QEMU that does `kvm` or `tcg` (shell), by its -accel argument."""
    path = folder / "qemu"
    path.write_text(f'#!/bin/sh\nif [ "$2" = kvm ]; then {kvm}; else {tcg}; fi\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("kvm", "emulated", "reason"),
    [
        ("exit 33", False, ""),
        ("echo failed to set MSR >&2; exit 1", True, "failed to set MSR"),
        ("exec sleep 30", True, "did not finish"),
        ("exit 0", True, "ended with 0"),
    ],
)
async def test_kvm_counts_only_when_it_runs_guests(tmp_path: Path, kvm: str, emulated: bool, reason: str) -> None:
    device = tmp_path / "kvm"
    device.touch()
    found = await emulation.probe(emulator(tmp_path, kvm), tmp_path / "probe.json", device)
    assert found.software_emulation is emulated
    assert reason in found.reason
    (tmp_path / "qemu").unlink()
    again = await emulation.probe(str(tmp_path / "qemu"), tmp_path / "probe.json", device)
    assert again == found, "the answer holds until the host boots again"


async def test_without_a_device_or_qemu_it_is_said(tmp_path: Path) -> None:
    assert "does not exist" in (await emulation.probe("/none", device=tmp_path / "kvm")).reason
    (tmp_path / "kvm").touch()
    assert "/none cannot be started" in (await emulation.probe("/none", device=tmp_path / "kvm")).reason


def test_slow_kvm_is_no_kvm() -> None:
    assert emulation.decide_emulation(0.3, 0.2) == ""
    assert "slower than emulation" in emulation.decide_emulation(30.0, 1.0)


async def test_a_slow_subscriber_is_told_that_events_were_lost() -> None:
    subscribers = Subscribers()
    stream = subscribers.subscribe()
    for number in range(QUEUE_LENGTH + 5):
        subscribers.publish(DriverEvent(uid=str(number), kind="lifecycle"))
    first = await anext(stream)
    assert (first.uid, first.kind) == ("", "lost")
    assert (await anext(stream)).uid == str(QUEUE_LENGTH)


def test_states() -> None:
    off = libvirt.VIR_DOMAIN_SHUTOFF
    assert state_from_libvirt(off, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED) == (State.CRASHED, StopReason.CRASHED)
    assert state_from_libvirt(off, libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN) == (State.OFF, StopReason.SHUTDOWN)
    paused = libvirt.VIR_DOMAIN_PAUSED
    assert state_from_libvirt(paused, libvirt.VIR_DOMAIN_PAUSED_IOERROR) == (State.PAUSED, StopReason.IO_ERROR)
    assert state_from_libvirt(libvirt.VIR_DOMAIN_SHUTDOWN, 0)[0] is State.STOPPING


def test_counters_have_our_names_and_units() -> None:
    raw = {"cpu.time": 5, "balloon.rss": 2, "block.count": 1, "block.0.name": "vda", "block.0.rd.bytes": 7}
    assert statistics_from_libvirt(raw, {"vda": "root"}) == {
        "cpu_time_ns": 5.0, "memory_rss_bytes": 2048.0, "block.root.rd_bytes": 7.0,
    }  # fmt: skip


def test_a_ppm_becomes_a_png() -> None:
    png = png_from_ppm(b"P6\n2 1\n255\n" + bytes(range(6)))
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    start = png.index(b"IDAT") + 4
    assert zlib.decompress(png[start : png.index(b"IEND") - 8]) == b"\0" + bytes(range(6))
    with pytest.raises(Failed, match="unknown image format"):
        png_from_ppm(b"GIF89a")


def test_an_unknown_driver_is_named() -> None:
    with pytest.raises(NotFound, match="no hypervisor driver named 'nothing'"):
        create("nothing")

"""Of libvirt's protocol only a migration's calls pass, in whatever pieces, and only about what was prepared."""

from __future__ import annotations

import struct

import pytest

from stead.hypervisor.contract import Cpu, Disk, Graphics, Isolation, Machine, Memory, Nic, Unsupported
from stead.hypervisor.libvirt.gate import Gate
from stead.hypervisor.libvirt.handover import arriving_xml
from stead.hypervisor.libvirt.xml import domain_xml

UID = "5969c14a-56f1-450c-b7eb-fb95d6c738f5"
TLS = 1 << 16
COOKIE = "<qemu-migration><name>vm</name>{}</qemu-migration>"


def machine(place: str, owner: int) -> Machine:
    return Machine(
        uid=UID, namespace="default", name="vm", cpu=Cpu(), memory=Memory(size=64 << 20), run_dir=f"/run/{place}",
        disks=(Disk(name="root", path=f"/pool/{place}.img"),), serial_socket=f"/run/{place}/serial.sock",
        graphics=Graphics(vnc_socket=f"/run/{place}/vnc.sock"),
        nics=(Nic(name="default", mac="02:00:00:00:00:01", backend="tap", target=f"tap{place}"),),
        isolation=Isolation(uid=owner, gid=owner), software_emulation=True,
    )  # fmt: skip


SOURCE, TARGET = machine("here", 310001), machine("there", 310002)
ARRIVING = arriving_xml(domain_xml(SOURCE), TARGET)


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack(">I", len(data)) + data + b"\0" * (-len(data) % 4)


def prepare(document: str, cookie: str = "", flags: int = TLS) -> bytes:
    parameters = text("destination_xml") + struct.pack(">I", 7) + text(document)
    parameters += text("bandwidth") + struct.pack(">IQ", 4, 7)
    return message(303, struct.pack(">I", 2) + parameters + text(cookie) + struct.pack(">I", flags))


def finish(cookie: str) -> bytes:
    return message(306, struct.pack(">I", 0) + text(cookie) + struct.pack(">II", TLS, 0))


def message(procedure: int, body: bytes = b"", program: int = 0x20008086, kind: int = 0) -> bytes:
    return struct.pack(">7I", 28 + len(body), program, 1, procedure, kind, 0, 0) + body


def test_a_migration_passes_in_pieces() -> None:
    calls = [message(66), message(1, b"x" * 9), prepare(ARRIVING, COOKIE.format("") + "\0"),
             message(1, program=0x6B656570, kind=2), finish(COOKIE.format(domain_xml(TARGET)))]  # fmt: skip
    stream, gate, passed = b"".join(calls), Gate(TARGET), b""
    for at in range(0, len(stream), 7):
        passed += gate.feed(stream[at : at + 7])
        assert stream.startswith(passed)
    assert passed == stream


@pytest.mark.parametrize(
    "stream",
    [
        message(10),  # domain_create_xml
        message(2, program=0x20008087),  # the QEMU program: monitor commands
        message(66) + message(11),
        struct.pack(">7I", 1 << 30, 0x20008086, 1, 1, 0, 0, 0),
        struct.pack(">7I", 4, 0x20008086, 1, 1, 0, 0, 0),
        message(303, UID.encode()),
        message(303, struct.pack(">III", 0, 0, TLS)),  # describes nothing
        prepare(ARRIVING, flags=0),
        message(303, prepare(ARRIVING)[28:] + b"\0\0\0\0"),
        prepare("<?xml version='1.0' encoding='IBM037'?>" + ARRIVING),
        prepare("<!DOCTYPE domain [<!ENTITY a SYSTEM 'file:///etc/shadow'>]>" + ARRIVING),
        prepare(ARRIVING, "<other/>"),
        finish(COOKIE.format(domain_xml(SOURCE))),
    ],
)
def test_nothing_else_does(stream: bytes) -> None:
    with pytest.raises(Unsupported):
        Gate(TARGET).feed(stream)


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        (UID, "d3b07384-d9a0-4c9b-8f3e-000000000000"),
        ("/pool/there.img", "/etc/shadow"),
        ("/pool/there.img", "/pool/other.img"),
        ("310002", "0"),
        ("tapthere", "eth0"),
        ("</devices>", "<hostdev mode='subsystem' type='pci'/></devices>"),
        ("</devices>", "<filesystem type='mount'><source dir='/'/><target dir='x'/></filesystem></devices>"),
        ("</devices>", "<serial type='tcp'><source mode='connect' host='192.0.2.1' service='22'/></serial></devices>"),
        ("</devices>", "<input type='evdev'><source dev='/dev/input/event0'/></input></devices>"),
        ("</devices>", "<emulator>/tmp/evil</emulator></devices>"),
        ("</domain>", "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'/></domain>"),
        ("</os>", "<kernel>/root/secret</kernel></os>"),
        ("stead", "other"),
    ],
)
def test_a_description_reaches_for_nothing_that_was_not_prepared(there: str, instead: str) -> None:
    assert there in ARRIVING
    for stream in (
        prepare(ARRIVING.replace(there, instead)),
        finish(COOKIE.format(ARRIVING.replace(there, instead))),
    ):
        with pytest.raises(Unsupported):
            Gate(TARGET).feed(stream)


def test_more_memory_than_was_prepared_is_refused() -> None:
    more = arriving_xml(domain_xml(SOURCE), TARGET).replace(">67108864<", ">671088640<").replace(">65536<", ">655360<")
    assert more != ARRIVING
    with pytest.raises(Unsupported):
        Gate(TARGET).feed(prepare(more))

"""A bootable disk put together from parts without mounting anything: GPT, GRUB for BIOS, the signed loaders for UEFI.

Called by `golden` only. Pure byte work plus three programs (grub-mkimage from the unpacked package, mformat, mcopy).
Layout: BIOS boot partition at 1 MiB (1 MiB), EFI system partition at 2 MiB (14 MiB), root at 16 MiB to the end, so
that it can grow. Identifiers are fixed, so the same parts give the same disk. GPT: UEFI specification 2.10, §5.3.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import uuid
import zlib
from pathlib import Path

import msgspec

MIB = 1 << 20
SECTOR = 512
ROOT_START = 16 * MIB
DISK_BYTES = 3 << 30
#: the root partition ends one MiB before the disk does, where the backup table is
ROOT_BYTES = DISK_BYTES - ROOT_START - MIB

_BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
_EFI_SYSTEM = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_LINUX_ROOT_X86_64 = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
_NAMESPACE = uuid.UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")

_BIOS_MODULES = (
    "biosdisk", "part_gpt", "part_msdos", "ext2", "search_label", "normal", "configfile", "linux", "boot", "echo",
    "test",
)  # fmt: skip
_CONFIG = "search.fs_label stead-root root\nset prefix=($root)/boot/grub\nnormal ($root)/boot/grub/grub.cfg\n"


class BootDisk(msgspec.Struct, frozen=True):
    """`root` (an ext4 image of ROOT_BYTES) and `loaders` (unpacked packages) become `raw`; `work` is scratch."""

    raw: Path
    root: Path
    loaders: Path
    work: Path


class Partition(msgspec.Struct, frozen=True):
    """One GPT entry; `first` and `last` are sectors, both included."""

    type: uuid.UUID
    name: str
    first: int
    last: int


def gpt(partitions: list[Partition], sectors: int) -> tuple[bytes, bytes]:
    """The first 34 sectors (protective MBR, header, entries) and the last 33 of a disk of `sectors` sectors."""
    entries = b"".join(
        p.type.bytes_le
        + uuid.uuid5(_NAMESPACE, f"stead {p.name}").bytes_le
        + struct.pack("<QQQ", p.first, p.last, 0)
        + p.name.encode("utf-16-le").ljust(72, b"\0")
        for p in partitions
    ).ljust(128 * 128, b"\0")

    def header(own: int, other: int, table: int) -> bytes:
        def pack(crc: int) -> bytes:
            return struct.pack(
                "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x00010000, 92, crc, 0, own, other, 34, sectors - 34,
                uuid.uuid5(_NAMESPACE, "stead disk").bytes_le, table, 128, 128, zlib.crc32(entries),
            )  # fmt: skip

        return pack(zlib.crc32(pack(0))).ljust(SECTOR, b"\0")

    protective = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF))
    mbr = bytes(446) + protective + bytes(48) + b"\x55\xaa"
    return mbr + header(1, sectors - 1, 2) + entries, entries + header(sectors - 1, 1, sectors - 33)


def boot_sector(boot_img: bytes, core_sector: int) -> bytes:
    """GRUB's boot.img (the first 440 bytes of the disk) told where its core image begins."""
    return boot_img[:0x5C] + struct.pack("<Q", core_sector) + boot_img[0x64:440]


def placed_core(core_img: bytes, core_sector: int) -> bytes:
    """GRUB's core image told that its second sector follows its first (the block list at the first sector's end)."""
    return core_img[:0x1F4] + struct.pack("<Q", core_sector + 1) + core_img[0x1FC:]


def assemble(disk: BootDisk) -> None:
    """Write the whole raw disk; blocking."""
    core_sector = MIB // SECTOR
    core = placed_core(_grub_core(disk), core_sector)
    if len(core) > MIB:
        raise ValueError(f"GRUB's core image is {len(core)} bytes, more than its partition of 1 MiB")
    esp = _efi_partition(disk)
    sectors = DISK_BYTES // SECTOR
    head, tail = gpt(
        [
            Partition(_BIOS_BOOT, "bios", core_sector, 2 * MIB // SECTOR - 1),
            Partition(_EFI_SYSTEM, "efi", 2 * MIB // SECTOR, ROOT_START // SECTOR - 1),
            Partition(_LINUX_ROOT_X86_64, "root", ROOT_START // SECTOR, (ROOT_START + ROOT_BYTES) // SECTOR - 1),
        ],
        sectors,
    )
    boot_img = (disk.loaders / "usr/lib/grub/i386-pc/boot.img").read_bytes()
    with disk.raw.open("wb") as out:
        out.truncate(DISK_BYTES)
        out.write(boot_sector(boot_img, core_sector) + head[440:])
        out.seek(MIB)
        out.write(core)
        out.seek(2 * MIB)
        out.write(esp.read_bytes())
        _copy_sparse(disk.root, out.fileno(), ROOT_START)
        out.seek(DISK_BYTES - len(tail))
        out.write(tail)


def _copy_sparse(source: Path, target: int, offset: int) -> None:
    with source.open("rb") as handle:
        fd, size, position = handle.fileno(), os.fstat(handle.fileno()).st_size, 0
        while position < size:
            try:
                start = os.lseek(fd, position, os.SEEK_DATA)
            except OSError:
                return  # ENXIO: only a hole is left
            position = os.lseek(fd, start, os.SEEK_HOLE)
            while start < position:
                start += os.copy_file_range(fd, target, position - start, start, offset + start)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise ValueError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")


def _grub_core(disk: BootDisk) -> bytes:
    config, core = disk.work / "core.cfg", disk.work / "core.img"
    config.write_text(_CONFIG, encoding="utf-8")
    program = disk.loaders / "usr/bin/grub-mkimage"
    # the loader's libraries are the tree's own where the host lacks them
    tree = disk.work / "root"
    libraries = ":".join(str(tree / p) for p in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"))
    loader = next(p for p in (tree / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
                              tree / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2") if p.exists())  # fmt: skip
    modules = disk.loaders / "usr/lib/grub/i386-pc"
    _run(str(loader), "--library-path", libraries, str(program), "-O", "i386-pc", "-d", str(modules),
         "-p", "/boot/grub", "-c", str(config), "-o", str(core), *_BIOS_MODULES)  # fmt: skip
    return core.read_bytes()


def _efi_partition(disk: BootDisk) -> Path:
    """A FAT filesystem with the signed shim and GRUB; the signed GRUB reads EFI/debian/grub.cfg beside it."""
    esp = disk.work / "esp.img"
    config = disk.work / "esp.cfg"
    config.write_text(
        "search.fs_label stead-root root\nset prefix=($root)/boot/grub\nconfigfile ($root)/boot/grub/grub.cfg\n",
        encoding="utf-8",
    )
    shim = disk.loaders / "usr/lib/shim/shimx64.efi.signed"
    if not shim.exists():
        shim = disk.loaders / "usr/lib/shim/shimx64.efi.signed.latest"
    grub = disk.loaders / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
    esp.touch()
    os.truncate(esp, ROOT_START - 2 * MIB)
    _run("mformat", "-i", str(esp), "-v", "EFI", "-N", "57ead000", "::")
    for folder in ("::/EFI", "::/EFI/BOOT", "::/EFI/debian", "::/EFI/ubuntu"):
        _run("mmd", "-i", str(esp), folder)
    for source, name in ((shim, "BOOT/BOOTX64.EFI"), (grub, "BOOT/grubx64.efi"), (config, "debian/grub.cfg"),
                         (config, "ubuntu/grub.cfg"), (config, "BOOT/grub.cfg")):  # fmt: skip
        _run("mcopy", "-i", str(esp), str(source), f"::/EFI/{name}")
    return esp


def required_programs() -> list[str]:
    """Programs of the host that `assemble` runs and that are missing."""
    return [p for p in ("mformat", "mmd", "mcopy") if not shutil.which(p)]

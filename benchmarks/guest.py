"""The guest that benchmarks boot unless `--image` names another: Debian's kernel and busybox on a 48 MiB disk.

Made from packages (`apt-get download`; nothing is installed) and kept below `STEAD_BENCH_CACHE` (default
/var/cache/stead-bench). It says `ready` on ttyS0 and then sleeps, powers off on nothing, and has no network: what is
measured is the host's side. The disk boots by BIOS: GRUB, one ext2 partition with kernel and initramfs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
from pathlib import Path

from .processes import run

PACKAGES = ("busybox-static", "grub-pc-bin", "grub-common")
MIB = 1 << 20
DISK_BYTES = 48 * MIB
_INIT = b"""#!/bin/sh
/bin/busybox mount -t devtmpfs dev /dev
echo ready >/dev/ttyS0
while :; do /bin/busybox sleep 3600; done
"""
_GRUB = "search.fs_label bench root\nlinux /vmlinuz console=ttyS0 quiet panic=-1\ninitrd /initrd\nboot\n"


async def image(given: Path | None) -> Path:
    """A bootable qcow2: the given one, the kept one, or one made now."""
    if given is not None:
        return given
    cache = Path(os.environ.get("STEAD_BENCH_CACHE", "/var/cache/stead-bench"))
    kept = cache / "guest-1.qcow2"
    if not kept.exists():
        work = cache / f"work-{os.getpid()}"
        await asyncio.to_thread(shutil.rmtree, work, True)
        work.mkdir(parents=True)
        try:
            await _build(work)
            (work / "disk.qcow2").replace(kept)
        finally:
            await asyncio.to_thread(shutil.rmtree, work, True)
    return kept


async def _build(work: Path) -> None:
    root, tree = work / "root", work / "tree"
    root.mkdir()
    tree.mkdir()
    await _unpack(root)
    kernel = next((root / "boot").glob("vmlinuz-*"))
    busybox = next(path for path in (root / "bin/busybox", root / "usr/bin/busybox") if path.exists())
    shutil.copyfile(kernel, tree / "vmlinuz")
    (tree / "initrd").write_bytes(_initramfs(busybox.read_bytes()))
    part = work / "part"
    size = DISK_BYTES - MIB
    await run("mke2fs", "-q", "-t", "ext2", "-L", "bench", "-m", "0", "-d", tree, part, f"{size >> 10}k")
    (work / "grub.cfg").write_text(_GRUB)
    modules = root / "usr/lib/grub/i386-pc"
    await run(*_with_libraries(root), root / "usr/bin/grub-mkimage", "-O", "i386-pc", "-d", modules, "-p", "/boot",
              "-c", work / "grub.cfg", "-o", work / "core.img", "biosdisk", "part_msdos", "ext2", "search_label",
              "linux", "boot")  # fmt: skip
    _assemble(work / "disk.raw", part, (modules / "boot.img").read_bytes(), (work / "core.img").read_bytes())
    await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", work / "disk.raw", work / "disk.qcow2")


async def _unpack(root: Path) -> None:
    """Fetch and unpack the packages, with the libraries of grub-mkimage."""
    depends = await run("apt-cache", "depends", "linux-image-cloud-amd64")
    kernel = next(word for word in depends.split() if word.startswith("linux-image-") and "unsigned" not in word
                  and word != "linux-image-cloud-amd64")  # fmt: skip
    flags = ("--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces",
             "--no-enhances")  # fmt: skip
    tree = await run("apt-cache", "depends", *flags, "grub-common")
    libraries = {line for line in tree.splitlines() if line.startswith("lib") and "perl" not in line}
    debs = root / "debs"
    debs.mkdir()
    process = await asyncio.create_subprocess_exec(
        "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", kernel, *PACKAGES, *sorted(libraries), cwd=debs,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await process.communicate()
    if process.returncode:
        raise OSError(f"apt-get download: {errors.decode(errors='replace').strip()[-300:]}; or name a disk by --image")
    for deb in debs.glob("*.deb"):
        await run("dpkg-deb", "-x", deb, root)


def _with_libraries(root: Path) -> list[str]:
    """What runs an unpacked program with the unpacked libraries."""
    folders = [root / part / "x86_64-linux-gnu" for part in ("lib", "usr/lib")]
    loader = next(path for folder in folders for path in folder.glob("ld-linux-x86-64.so.2"))
    return [str(loader), "--library-path", ":".join(map(str, folders))]


def _initramfs(busybox: bytes) -> bytes:
    """A "newc" archive of init, busybox and sh."""
    parts = []
    entries = (("dev", 0o040755, b""), ("bin", 0o040755, b""), ("bin/busybox", 0o100755, busybox),
               ("bin/sh", 0o120777, b"/bin/busybox"), ("init", 0o100755, _INIT), ("TRAILER!!!", 0, b""))  # fmt: skip
    for number, (name, mode, data) in enumerate(entries, 1):
        encoded = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        parts += [header, bytes(-len(header) % 4), data, bytes(-len(data) % 4)]
    return b"".join(parts)


def _assemble(disk: Path, part: Path, boot_img: bytes, core_img: bytes) -> None:
    """Boot sector with one active partition at 1 MiB, GRUB's core behind it, then the file system."""
    sectors = (DISK_BYTES - MIB) // 512
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", 2048, sectors)
    with disk.open("wb") as out, part.open("rb") as source:
        out.write(boot_img[:440] + bytes(6) + entry + bytes(48) + b"\x55\xaa")
        out.write(core_img)
        out.seek(MIB)
        shutil.copyfileobj(source, out, MIB)
        out.truncate(DISK_BYTES)

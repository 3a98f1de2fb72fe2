"""The tiny guest that tests boot: Debian's cloud kernel, a static busybox, the guest agent; ready in seconds under TCG.

Built once from the distribution's packages (`apt-get download`, nothing is installed) and cached below the folder that
`STEAD_TEST_CACHE` names (default `/var/cache/stead-tests`); a lock makes concurrent first callers wait for one build.
It needs root or any user that may write the cache, `apt-get`, `dpkg-deb`, `mke2fs` and `qemu-img`.

What the guest does: loads its modules, prints `stead-guest: ready` on ttyS0, then `stead-guest: hostname H`,
`stead-guest: address A` (DHCP on the first NIC), `tick N` each second (until `/run/quiet` exists) and a root shell
there; echoes on tcp/7; serves `/www` on tcp/80 (`/` is `stead-guest H`, `/seed/` holds the NoCloud or ConfigDrive
files); powers off on the ACPI button; runs `qemu-ga` when it has the channel. No password on the serial shell; no ssh.

Debian's cloud kernel has no AHCI, USB or e1000 driver: a test whose guest must see a SATA CD-ROM asks for
`kernel="generic"`, which boots in about twice the time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import lzma
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import zstandard

KERNELS = {"cloud": "linux-image-cloud-amd64", "generic": "linux-image-amd64"}
PACKAGES = ("busybox-static", "grub-pc-bin", "grub-common", "qemu-guest-agent")
#: kernel modules by name, loaded in this order with their dependencies first; those a kernel has built in are skipped
MODULES = (
    "virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_scsi", "sd_mod", "sr_mod", "isofs", "ahci",
    "ext4", "button", "evdev", "virtio_balloon", "virtio_rng", "af_packet", "nls_utf8", "nls_ascii", "vfat", "e1000",
    "nvme", "virtio_input", "virtiofs", "cdrom", "ata_piix", "e1000e", "xhci_pci", "usb_storage",
)  # fmt: skip
CMDLINE = "console=ttyS0 quiet loglevel=3 panic=-1 net.ifnames=0"

INIT = """#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=vt100
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /run /tmp /www/seed; mount -t devpts pts /dev/pts; mount -t tmpfs run /run
exec </dev/ttyS0 >/dev/ttyS0 2>&1
for m in $(cat /modules/order); do insmod /modules/$m 2>/dev/null; done
echo "stead-guest: ready"
ip link set lo up
( n=1; while :; do [ -e /run/quiet ] || echo "tick $n"; n=$((n+1)); sleep 1; done ) &
host=stead-guest
for d in /dev/sr0 /dev/vd? /dev/sd?; do
  [ -b $d ] || continue
  mkdir -p /run/seed
  mount -r -t iso9660 $d /run/seed 2>/dev/null || mount -r -t vfat $d /run/seed 2>/dev/null || continue
  if [ -e /run/seed/meta-data ]; then
    cp /run/seed/* /www/seed/; echo "stead-guest: seed NoCloud"
    h=$(sed -n 's/^"\\?local-hostname"\\?: *"\\?\\([^" ,}]*\\).*/\\1/p' /run/seed/meta-data | head -n 1)
    [ -n "$h" ] || h=$(sed -n 's/.*"local-hostname": *"\\([^"]*\\)".*/\\1/p' /run/seed/meta-data | head -n 1)
    [ -n "$h" ] && host=$h
  elif [ -d /run/seed/openstack/latest ]; then
    cp /run/seed/openstack/latest/* /www/seed/; echo "stead-guest: seed ConfigDrive"
    h=$(sed -n 's/.*"hostname": *"\\([^"]*\\)".*/\\1/p' /run/seed/openstack/latest/meta_data.json | head -n 1)
    [ -n "$h" ] && host=$h
  fi
  umount /run/seed
done
hostname $host
echo "stead-guest $host" > /www/index.html
echo "stead-guest: hostname $host"
cd /sys/block
echo "stead-guest: disks $(for b in vd* sd* sr* nvme*; do [ -e $b ] && printf '%s:%s ' $b $(cat $b/size); done)"
cd /
for p in /sys/class/virtio-ports/*; do
  [ -e $p/name ] || continue
  mkdir -p /dev/virtio-ports; ln -sf /dev/${p##*/} "/dev/virtio-ports/$(cat $p/name)"
done
[ -e /dev/virtio-ports/org.qemu.guest_agent.0 ] && qemu-ga -d -t /run -f /run/qga.pid
acpid -l /run/acpid.log
httpd -h /www
( while :; do nc -ll -p 7 -e cat; sleep 1; done ) &
if [ -e /sys/class/net/eth0 ]; then
  ip link set eth0 up
  ( udhcpc -i eth0 -s /etc/udhcpc -t 30 -T 1 -F $host >/run/udhcpc.log 2>&1 ) &
fi
while :; do setsid cttyhack sh -l; sleep 1; done
"""

UDHCPC = """#!/bin/sh
case "$1" in
  bound|renew)
    ip addr flush dev $interface
    ip addr add $ip/${mask:-24} dev $interface
    [ -n "$mtu" ] && ip link set $interface mtu $mtu
    for r in $router; do ip route replace default via $r; done
    : > /etc/resolv.conf
    [ -n "$domain" ] && echo "search $domain" >> /etc/resolv.conf
    for s in $dns; do echo "nameserver $s" >> /etc/resolv.conf; done
    [ "$1" = bound ] && echo "stead-guest: address $ip" > /dev/ttyS0
    ;;
esac
exit 0
"""

#: qemu-ga runs /sbin/shutdown -P|-H|-r +0
SHUTDOWN = '#!/bin/sh\nsync\ncase "$*" in *-r*) reboot -f;; *) poweroff -f;; esac\n'
POWER_BUTTON = "#!/bin/sh\necho 'stead-guest: poweroff' > /dev/ttyS0\nsync\npoweroff -f\n"
OS_RELEASE = 'NAME="Stead test guest"\nID=steadguest\nVERSION_ID="1"\nVERSION="1"\nPRETTY_NAME="Stead test guest 1"\n'


def kernel_path(kernel: str = "cloud") -> Path:
    """What `-kernel` takes (boot with `CMDLINE`); `kernel` is `cloud` (fast) or `generic` (all drivers)."""
    return _built(kernel) / "vmlinuz"


def initrd_path(kernel: str = "cloud") -> Path:
    """The initrd that goes with `kernel_path()`; not compressed, so that emulation does not pay for it."""
    return _built(kernel) / "initrd"


def disk_image(format: str = "qcow2", kernel: str = "cloud") -> Path:
    """A 64 MiB disk that boots by BIOS (MBR, GRUB, one ext2 partition); `format` is `qcow2` or `raw`."""
    if format not in ("qcow2", "raw"):
        raise ValueError(f"disk_image: format {format!r} is not qcow2 or raw")
    return _built(kernel) / ("disk.qcow2" if format == "qcow2" else "disk.raw")


def cache_dir() -> Path:
    """Where built things are kept between test runs."""
    path = Path(os.environ.get("STEAD_TEST_CACHE", "/var/cache/stead-tests"))
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _built(kernel: str) -> Path:
    """The folder of the finished guest, built if this source has changed since (or never was)."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    target = cache_dir() / f"guest-{kernel}-{digest}"
    if target.exists():
        return target
    with _locked(cache_dir() / "guest.lock"):
        if not target.exists():
            work = cache_dir() / f"guest-{kernel}-{digest}.part"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            _build(work, KERNELS[kernel])
            shutil.rmtree(work / "root")
            work.rename(target)
    return target


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def _build(work: Path, kernel_package: str) -> None:
    root = work / "root"
    root.mkdir()
    _download(root, kernel_package)
    kernel = next((root / "boot").glob("vmlinuz-*"))
    shutil.copyfile(kernel, work / "vmlinuz")
    (work / "initrd").write_bytes(_initrd(root))
    _disk(work, root)


def _dependencies(package: str, *, recurse: bool) -> list[str]:
    flags = ["--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances"]
    out = _run("apt-cache", "depends", *(["--recurse"] if recurse else []), *flags, package)
    names = [line.split("Depends:")[-1].strip() for line in out.splitlines() if "Depends:" in line]
    return [name for name in dict.fromkeys(names) if not name.startswith("<")]


def _download(root: Path, kernel_package: str) -> None:
    """Fetch and unpack the packages and the shared libraries that the agent and grub-mkimage may need."""
    kernel = next(n for n in _dependencies(kernel_package, recurse=False) if n.startswith("linux-image-"))
    libraries = {
        name
        for package in ("qemu-guest-agent", "grub-common")
        for name in _dependencies(package, recurse=True)
        if name.startswith("lib") and not name.endswith("-perl") and "perl" not in name
    }
    wanted = sorted({kernel, *PACKAGES, *libraries})
    debs = root.parent / "root" / "debs"
    debs.mkdir()
    _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *wanted, cwd=debs)
    for deb in sorted(debs.glob("*.deb")):
        _run("dpkg-deb", "-x", deb, root)
    shutil.rmtree(debs)


def _module_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def _modules(root: Path) -> list[tuple[str, bytes]]:
    """`MODULES` and what they depend on, dependencies first (read from each module's own .modinfo)."""
    files: dict[str, Path] = {}
    for top in (root / "lib/modules", root / "usr/lib/modules"):
        if top.exists() and not top.is_symlink():
            files |= {p.name.split(".ko")[0].replace("-", "_"): p for p in top.rglob("*.ko*")}
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or name not in files:
            return
        data = _module_bytes(files[name])
        for field in (b"\0depends=", b"\0softdep=pre: "):
            start = data.find(field)
            if start >= 0:
                text = data[start + len(field) : data.index(b"\0", start + len(field))].decode()
                for needed in text.replace(" ", ",").split(","):
                    if needed and needed not in ("post:", "pre:"):
                        add(needed.replace("-", "_"))
        ordered[name] = data

    for module in MODULES:
        add(module)
    return list(ordered.items())


def _program(root: Path, *names: str) -> Path:
    return next(root / n for n in names if (root / n).exists())


def _loader(root: Path) -> list[str]:
    """The command prefix that runs an unpacked program with the unpacked libraries."""
    loader = _program(root, "lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2").resolve()
    if not loader.is_relative_to(root.resolve()):  # the link is absolute and left the tree
        loader = _program(root, *(f"{p}/x86_64-linux-gnu/ld-linux-x86-64.so.2" for p in ("usr/lib", "lib")))
    path = ":".join(str(root / p) for p in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib", "usr/lib"))
    return [str(loader), "--library-path", path]


def _agent_files(root: Path) -> dict[str, bytes]:
    """`qemu-ga` with its loader and libraries, by path in the guest."""
    program = _program(root, "usr/sbin/qemu-ga", "usr/bin/qemu-ga")
    listing = _run(*_loader(root), "--list", program)
    files = {"usr/sbin/qemu-ga": program.read_bytes()}
    for line in listing.splitlines():
        if "=>" in line:
            name, _, rest = line.strip().partition(" => ")
            files[f"lib/x86_64-linux-gnu/{Path(name).name}"] = Path(rest.split(" (")[0]).read_bytes()
    files["lib64/ld-linux-x86-64.so.2"] = Path(_loader(root)[0]).read_bytes()
    return files


def _initrd(root: Path) -> bytes:
    archive = _Cpio()
    for folder in ("bin", "sbin", "usr/bin", "usr/sbin", "proc", "sys", "dev", "run", "tmp", "root", "etc/acpi/PWRF",
                   "modules", "lib/x86_64-linux-gnu", "lib64", "www", "mnt", "var/log"):  # fmt: skip
        archive.folder(folder)
    busybox = _program(root, "bin/busybox", "usr/bin/busybox")
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in _run(busybox, "--list").split():
        if applet != "busybox":
            archive.link(f"bin/{applet}", "/bin/busybox")
    modules = _modules(root)
    for name, data in modules:
        archive.file(f"modules/{name}.ko", data)
    archive.file("modules/order", "".join(f"{name}.ko\n" for name, _ in modules).encode())
    for path, data in _agent_files(root).items():
        archive.file(path, data, 0o755)
    texts = {"init": INIT, "etc/udhcpc": UDHCPC, "sbin/shutdown": SHUTDOWN, "etc/acpi/PWRF/00000080": POWER_BUTTON}
    for path, text in texts.items():
        archive.file(path, text.encode(), 0o755)
    archive.file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n")
    archive.file("etc/group", b"root:x:0:\n")
    archive.file("etc/os-release", OS_RELEASE.encode())
    return archive.close()


class _Cpio:
    """A "newc" archive (the format of an initramfs), in memory and the same bytes each time."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0
        self._folders: set[str] = set()

    def folder(self, path: str) -> None:
        parts = path.split("/")
        for n in range(1, len(parts) + 1):
            name = "/".join(parts[:n])
            if name not in self._folders:
                self._folders.add(name)
                self._entry(name, 0o040755, b"")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self._entry(path, 0o100000 | mode, data)

    def link(self, path: str, target: str) -> None:
        self._entry(path, 0o120777, target.encode())

    def close(self) -> bytes:
        self._entry("TRAILER!!!", 0, b"")
        return b"".join(self._parts)

    def _entry(self, name: str, mode: int, data: bytes) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % f for f in fields) + encoded
        self._parts += [header, b"\0" * (-len(header) % 4), data, b"\0" * (-len(data) % 4)]


def write_mbr(disk: Path, boot_img: bytes, core_img: bytes, sectors: int) -> None:
    """Put GRUB's boot sector and core image, and a table of one active Linux partition at 1 MiB, on a raw disk.

    Both images are used as shipped: boot.img looks for the core at sector 1, and the core's block list, which
    grub-mkimage fills, says that the rest follows at once.
    """
    if len(core_img) > 2047 * 512:
        raise ValueError(f"GRUB's core image is {len(core_img)} bytes; it must fit before the first partition at 1 MiB")
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", 2048, sectors)
    with disk.open("r+b") as handle:
        handle.write(boot_img[:440] + b"STED\0\0" + entry + bytes(48) + b"\x55\xaa")
        handle.write(core_img)


def _disk(work: Path, root: Path) -> None:
    size = 64 << 20
    tree = work / "root" / "disk-tree"
    tree.mkdir()
    shutil.copyfile(work / "vmlinuz", tree / "vmlinuz")
    shutil.copyfile(work / "initrd", tree / "initrd")
    part = work / "root" / "part"
    _run("mke2fs", "-q", "-t", "ext2", "-L", "stead-guest", "-m", "0", "-d", tree, part, f"{(size - (1 << 20)) >> 10}k")
    config = work / "root" / "grub.cfg"
    config.write_text(
        f"search.fs_label stead-guest root\nlinux /vmlinuz {CMDLINE}\ninitrd /initrd\nboot\n", encoding="utf-8"
    )
    modules = root / "usr/lib/grub/i386-pc"
    core = work / "root" / "core.img"
    _run(*_loader(root), _program(root, "usr/bin/grub-mkimage"), "-O", "i386-pc", "-d", modules, "-p", "/boot", "-c",
         config, "-o", core, "biosdisk", "part_msdos", "ext2", "search_label", "linux", "boot")  # fmt: skip
    raw = work / "disk.raw"
    raw.touch()
    os.truncate(raw, 1 << 20)
    with raw.open("ab") as out, part.open("rb") as source:
        shutil.copyfileobj(source, out, 1 << 20)
    write_mbr(raw, (modules / "boot.img").read_bytes(), core.read_bytes(), (size - (1 << 20)) // 512)
    _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, work / "disk.qcow2")


if __name__ == "__main__":
    print(kernel_path(), initrd_path(), disk_image("qcow2"), disk_image("raw"), CMDLINE, sep="\n")

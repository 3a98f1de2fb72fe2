"""The golden image: a minimal Debian made from the host's own package sources, bootable by BIOS and UEFI.

Called by the command line and the quickstart; `build` is the whole of it. mmdebstrap makes the tree, this module writes
the few files that make it a cloud image, mke2fs puts the tree into a filesystem, and `bootdisk` joins partitions and
boot loaders: no loop device, no mount, no debootstrap cache, nothing left behind. It trusts what it reads (packages
that apt verified), so unlike an import it runs as its caller, who must be root.

What is in it: systemd, cloud-init (NoCloud, ConfigDrive), qemu-guest-agent, openssh-server, the generic kernel without
the drivers that no virtual machine has, systemd-networkd and -resolved. Boot: the embedded GRUB runs
`/boot/grub/grub.cfg`, which boots `/vmlinuz` and `/initrd.img`, the links that Debian moves at each kernel upgrade.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from stead.images import bootdisk

#: what `progress` is called with: a sentence of what goes on, and how much of the whole is done (0.0 to 1.0)
Progress = Callable[[str, float], None]

#: programs the host must have, and the package of each
HOST_PROGRAMS = {
    "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "mformat": "mtools", "mcopy": "mtools", "qemu-img": "qemu-utils",
    "dpkg-deb": "dpkg",
}  # fmt: skip

PACKAGES = (
    "systemd-sysv", "udev", "dbus", "libpam-systemd", "systemd-resolved", "systemd-timesyncd", "linux-image-amd64",
    "initramfs-tools", "e2fsprogs", "cloud-init", "cloud-guest-utils", "fdisk", "qemu-guest-agent", "openssh-server",
    "sudo", "ca-certificates", "netbase", "iproute2", "iputils-ping", "procps", "less", "nano", "zstd",
)  # fmt: skip

#: unpacked beside the image for the boot loaders, never installed in it
LOADER_PACKAGES = ("grub-pc-bin", "grub-common", "shim-signed", "grub-efi-amd64-signed")

#: kernel folders that hold no driver of a virtual machine's devices (or of what it may be given by pass-through often)
_NO_DRIVERS = (
    "media", "gpu/drm/amd", "gpu/drm/nouveau", "gpu/drm/radeon", "gpu/drm/i915", "gpu/drm/xe", "net/wireless", "isdn",
    "infiniband", "staging", "iio", "mtd", "hwmon", "bluetooth", "thunderbolt", "nfc", "mmc", "platform", "edac",
    "comedi", "accel", "power", "leds", "input/touchscreen", "input/joystick", "net/can", "net/wwan", "net/hamradio",
    "macintosh", "pcmcia", "memstick", "soundwire", "usb/gadget", "video", "net/ethernet/mellanox", "w1", "gnss",
)  # fmt: skip
_PATHS_EXCLUDED = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*",
    *(f"/lib/modules/*/kernel/drivers/{d}/*" for d in _NO_DRIVERS),
    *(f"/usr/lib/modules/*/kernel/drivers/{d}/*" for d in _NO_DRIVERS),
    *(f"{p}/lib/modules/*/kernel/{d}/*" for p in ("", "/usr") for d in ("sound", "net/bluetooth", "net/wireless")),
)  # fmt: skip

#: modules of the initial ramdisk: any disk bus a machine may boot from
_INITRD_MODULES = (
    "virtio_pci\nvirtio_blk\nvirtio_scsi\nsd_mod\nsr_mod\nahci\nnvme\next4\ncrc32c_generic\nvirtio_console\n"
)

#: files that must stand before packages are configured
_EARLY_FILES = {
    "etc/initramfs-tools/conf.d/stead": "MODULES=list\nCOMPRESS=zstd\nRESUME=none\nFSTYPE=ext4\n",
    "usr/share/initramfs-tools/modules.d/stead": _INITRD_MODULES,
    "etc/kernel-img.conf": "do_symlinks = yes\nlink_in_boot = no\n",
}

_CLOUD_CONFIG = """# How this image differs from the distribution's defaults: local sources of data, quick keys.
datasource_list: [ NoCloud, ConfigDrive, None ]
ssh_genkeytypes: [ ed25519, ecdsa ]
apt_preserve_sources_list: true
manage_etc_hosts: true
system_info:
  network: { renderers: [ networkd ] }
# systemd-repart and systemd-growfs do this, and sooner
growpart: { mode: off }
resize_rootfs: false
cloud_init_modules:
 - seed_random
 - bootcmd
 - write-files
 - growpart
 - resizefs
 - disk_setup
 - mounts
 - set_hostname
 - update_hostname
 - update_etc_hosts
 - ca-certs
 - rsyslog
 - users-groups
 - ssh
cloud_config_modules:
 - locale
 - set-passwords
 - apt-configure
 - ntp
 - timezone
 - runcmd
cloud_final_modules:
 - package-update-upgrade-install
 - write-files-deferred
 - scripts-vendor
 - scripts-per-once
 - scripts-per-boot
 - scripts-per-instance
 - scripts-user
 - phone-home
 - final-message
 - power-state-change
"""

_GRUB_CONFIG = """# Written with the image. /vmlinuz and /initrd.img are the links that the kernel packages keep.
set timeout=0
linux /vmlinuz root=LABEL=stead-root ro console=tty0 console=ttyS0,115200 net.ifnames=1 quiet
initrd /initrd.img
boot
"""

_LATE_FILES = {
    "etc/cloud/cloud.cfg.d/90-stead.cfg": _CLOUD_CONFIG,
    "etc/cloud/ds-identify.cfg": "policy: enabled\n",
    "boot/grub/grub.cfg": _GRUB_CONFIG,
    "etc/fstab": "LABEL=stead-root / ext4 defaults,errors=remount-ro,x-systemd.growfs 0 1\n",
    "etc/repart.d/50-root.conf": "[Partition]\nType=root\n",
    "etc/hostname": "localhost\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/machine-id": "uninitialized\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/systemd/system/systemd-networkd-wait-online.service.d/stead.conf":
        "[Service]\nExecStart=\nExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=20\n",
    "etc/systemd/journald.conf.d/stead.conf": "[Journal]\nSystemMaxUse=64M\n",
}  # fmt: skip

_MASKED = (
    "systemd-journal-flush.service", "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "systemd-pstore.service", "cloud-init-hotplugd.socket", "dpkg-db-backup.timer",
    "systemd-update-utmp-runlevel.service", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "dev-hugepages.mount",
    "dev-mqueue.mount", "getty-static.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount",
    "systemd-firstboot.service", "ldconfig.service", "fstrim.timer",
)  # fmt: skip
_ENABLED = ("systemd-networkd.service", "systemd-resolved.service", "systemd-networkd-wait-online.service")


class GoldenError(Exception):
    """The image could not be made; the message says which step failed and what to do."""


class Release(msgspec.Struct, frozen=True):
    """The distribution of the host, as /etc/os-release names it."""

    id: str
    codename: str
    version: str

    @property
    def name(self) -> str:
        """The name of the DataSource that stands for this image: `debian12`."""
        return f"{self.id}{self.version}"


def host_release(text: str | None = None) -> Release:
    """The release to build, read from os-release (or from `text` in its syntax)."""
    content = text if text is not None else Path("/etc/os-release").read_text(encoding="utf-8")
    fields = dict(re.findall(r'^([A-Z_]+)="?([^"\n]*)"?$', content, re.MULTILINE))
    if fields.get("ID") not in ("debian", "ubuntu") or not fields.get("VERSION_CODENAME"):
        raise GoldenError(
            f"the golden image is made from Debian's packages; this host is {fields.get('ID', 'unknown')!r}"
        )
    return Release(fields["ID"], fields["VERSION_CODENAME"], fields.get("VERSION_ID", ""))


def sources_from_texts(texts: dict[str, str], codename: str) -> str:
    """The distribution's own archive lines, in one-line style, out of the host's files (`name` → text).

    Kept: suites of the release itself, its updates and security, component main, not signed by a third party's key.
    """
    lines: list[str] = []
    for name, text in texts.items():
        entries = _deb822_entries(text) if name.endswith(".sources") else _line_entries(text)
        for options, uri, suite, components in entries:
            known = suite.split("/")[0] in (codename, f"{codename}-updates", f"{codename}-security")
            own_key = not options or "debian-archive" in options or "ubuntu-archive" in options
            if known and own_key and "main" in components and uri.split(":")[0] in ("http", "https", "file", "copy"):
                lines.append(f"deb {f'[{options}] ' if options else ''}{uri} {suite} {' '.join(components)}")
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))


_Entry = tuple[str, str, str, list[str]]


def _line_entries(text: str) -> list[_Entry]:
    found = []
    for line in text.splitlines():
        match = re.match(r"^\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if match:
            signed = re.search(r"signed-by=\S+", match[1] or "")
            found.append((signed[0] if signed else "", match[2], match[3], match[4].split()))
    return found


def _deb822_entries(text: str) -> list[_Entry]:
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", stanza, re.MULTILINE))
        if "deb" not in fields.get("Types", "").split() or fields.get("Enabled", "yes") == "no":
            continue
        key = fields.get("Signed-By", "").strip()
        options = f"signed-by={key}" if key.startswith("/") else ""
        found += [
            (options, uri, suite, fields.get("Components", "").split())
            for uri in fields.get("URIs", "").split()
            for suite in fields.get("Suites", "").split()
        ]
    return found


def host_sources(codename: str) -> str:
    """`sources_from_texts` of this host's /etc/apt."""
    paths = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    texts = {p.name: p.read_text(encoding="utf-8") for p in paths if p.is_file() and p.suffix in (".list", ".sources")}
    sources = sources_from_texts(texts, codename)
    if not sources:
        raise GoldenError(f"/etc/apt names no archive of {codename} with component main; add it, then try again")
    return sources


async def build(target: Path, progress: Progress | None = None, work_parent: Path | None = None) -> Path:
    """Make the image at `target` (qcow2, about 0.7 GB, 3 GiB virtual); replaces what is there only when complete.

    `work_parent` is where about 2 GB of scratch is kept meanwhile (default: the target's folder).
    Raises GoldenError with the failing step's last words.
    """
    tell = progress or (lambda _text, _share: None)
    missing = sorted({package for program, package in HOST_PROGRAMS.items() if not shutil.which(program)})
    if missing:
        raise GoldenError(f"the golden image needs programs of these packages: apt-get install {' '.join(missing)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".golden-", dir=work_parent or target.parent))
    try:
        await _build(target, work, tell)
    finally:
        await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
    tell("golden image ready", 1.0)
    return target


async def _build(target: Path, work: Path, tell: Progress) -> None:
    work.chmod(0o755)  # apt's own user must reach the tree below
    release = host_release()
    root, loaders = work / "root", work / "loaders"
    tell(f"installing {release.id} {release.codename} into a new tree", 0.02)
    loading = asyncio.create_task(_fetch_loaders(loaders))
    try:
        await _bootstrap(release, work, root, tell)
        tell("configuring the tree", 0.72)
        await asyncio.to_thread(_customise, root)
        await loading
    finally:
        loading.cancel()
    tell("making the filesystem", 0.75)
    part = work / "root.ext4"
    await _make_filesystem(root, part)
    tell("making it bootable", 0.88)
    raw = work / "disk.raw"
    await asyncio.to_thread(bootdisk.assemble, bootdisk.BootDisk(raw=raw, root=part, loaders=loaders, work=work))
    tell("writing qcow2", 0.92)
    finished = work / "disk.qcow2"
    await _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-m", "4", "-W", str(raw), str(finished))
    finished.replace(target)


async def _bootstrap(release: Release, work: Path, root: Path, tell: Progress) -> None:
    early = work / "early"
    _write_files(early, _EARLY_FILES)
    command = [
        "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", f"--include={','.join(PACKAGES)}",
        "--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Languages \"none\"",
        "--aptopt=Acquire::Retries \"3\"", "--dpkgopt=force-unsafe-io", "--dpkgopt=force-confold",
        *(f"--aptopt={option}" for option in await _proxy_options()),
        *(f"--dpkgopt=path-exclude={p}" for p in _PATHS_EXCLUDED),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        f"--essential-hook=sync-in {early} /",
        "--skip=cleanup/reproducible,check/qemu", release.codename, str(root), "-",
    ]  # fmt: skip
    steps = (("downloading", 0.15), ("extracting", 0.3), ("installing", 0.5), ("cleaning", 0.7))

    def follow(line: str) -> None:
        for word, share in steps:
            if word in line and line.startswith("I:"):
                tell(line.removeprefix("I:").strip(), share)

    await _run(*command, stdin=host_sources(release.codename), follow=follow, deadline=1500)


async def _proxy_options() -> list[str]:
    """The host's apt proxy settings, which mmdebstrap would otherwise not see."""
    out = await _run("apt-config", "dump", "Acquire")
    return re.findall(r'^(Acquire::https?::(?:[^ ]*::)?Proxy "[^"]+");$', out, re.MULTILINE | re.IGNORECASE)


async def _fetch_loaders(folder: Path) -> None:
    debs = folder / "debs"
    debs.mkdir(parents=True)
    await _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *LOADER_PACKAGES, cwd=debs)
    for deb in sorted(debs.glob("*.deb")):
        await _run("dpkg-deb", "-x", str(deb), str(folder))


def _write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _customise(root: Path) -> None:
    """Turn a fresh package tree into an image to be cloned: no identity of its own, only wanted units."""
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    _write_files(root, _LATE_FILES)
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    units = root / "etc/systemd/system"
    for unit in _MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    wants = {"systemd-networkd-wait-online.service": "network-online.target.wants"}
    for unit in _ENABLED:
        link = units / wants.get(unit, "multi-user.target.wants") / unit
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(f"/lib/systemd/system/{unit}")
    dbus_id = root / "var/lib/dbus/machine-id"
    dbus_id.unlink(missing_ok=True)
    dbus_id.symlink_to("/etc/machine-id")
    for pattern in ("etc/ssh/ssh_host_*", "var/lib/apt/lists/*", "var/cache/apt/*.bin", "var/cache/apt/archives/*.deb",
                    "var/log/*.log", "var/log/apt/*", "var/lib/systemd/random-seed"):  # fmt: skip
        for path in root.glob(pattern):
            with contextlib.suppress(IsADirectoryError, PermissionError):
                path.unlink()


async def _make_filesystem(root: Path, part: Path) -> None:
    """A 2.9 GiB ext4 filled from the tree; free space is a hole, and cloud-init grows it at the first boot."""
    await _run(
        "mke2fs", "-q", "-t", "ext4", "-L", "stead-root", "-m", "1", "-E", "lazy_itable_init=1,discard",
        "-O", "^metadata_csum_seed,^orphan_file", "-d", str(root), str(part), f"{bootdisk.ROOT_BYTES >> 10}k",
    )  # fmt: skip


async def _run(
    *command: str,
    stdin: str = "",
    cwd: Path | None = None,
    follow: Callable[[str], None] | None = None,
    deadline: float = 600,
) -> str:
    """Run a program to its end and return what it printed; both outputs are one stream, its tail kept for errors."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(deadline):
            process.stdin.write(stdin.encode())
            process.stdin.close()
            async for raw in process.stdout:
                line = raw.decode(errors="replace")
                lines = [*lines[-400:], line]
                if follow:
                    follow(line.rstrip())
            code = await process.wait()
    except TimeoutError:
        raise GoldenError(f"{command[0]} took longer than {deadline:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code:
        raise GoldenError(f"{command[0]} failed with code {code}: {''.join(lines[-12:]).strip()}")
    return "".join(lines)

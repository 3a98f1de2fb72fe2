"""Is Stead itself well: pools and their space, ports, certificates, names, clocks, the account of the plane."""

from __future__ import annotations

import datetime
import os
import pwd
import resource
import shutil
import socket
from pathlib import Path

from cryptography import x509

from stead import installation
from stead.config import Settings
from stead.doctor.finding import Finding, output_of, read

#: A pool with less than this share free is worth a warning.
LOW_SPACE = 0.10


def account(settings: Settings) -> Finding:
    title = f"the plane's account {settings.user!r}"
    try:
        found = pwd.getpwnam(settings.user) if settings.user else None
    except KeyError:
        return Finding(
            "account", title, "fail", "does not exist",
            f"useradd --system --shell /usr/sbin/nologin {settings.user}",
        )  # fmt: skip
    return Finding("account", title, "pass", f"uid {found.pw_uid}" if found else "the account that starts it")


def pools(settings: Settings) -> Finding:
    title = "pools have space"
    texts, low = [], []
    for pool in settings.all_pools:
        path = pool.path
        while not path.exists() and path != path.parent:
            path = path.parent
        usage = shutil.disk_usage(path)
        texts.append(f"{pool.name} {usage.free / 2**30:.0f} GiB free")
        if usage.free < usage.total * LOW_SPACE:
            low.append(pool.name)
    if low:
        return Finding("pools", title, "warn", ", ".join(texts), f"make room in {', '.join(low)}")
    return Finding("pools", title, "pass", ", ".join(texts))


def pool_paths(settings: Settings) -> Finding:
    title = "machines' processes can reach the pools"
    for pool in settings.all_pools:
        for folder in [pool.path, *pool.path.parents]:
            if folder.exists() and not folder.stat().st_mode & 0o001:
                return Finding(
                    "pool-paths", title, "fail", f"{folder} denies passage (mode {folder.stat().st_mode & 0o777:o})",
                    f"chmod o+x {folder}",
                )  # fmt: skip
    return Finding("pool-paths", title, "pass", "every parent folder can be passed")


def reflink(settings: Settings) -> Finding:
    title = "quick clones (reflink)"
    path = settings.all_pools[0].path
    while not path.exists() and path != path.parent:
        path = path.parent
    code, kind = output_of("stat", "-f", "-c", "%T", str(path))
    if code == 0 and kind in ("xfs", "btrfs", "zfs", "bcachefs"):
        return Finding("reflink", title, "pass", kind)
    return Finding(
        "reflink", title, "warn", f"{kind} copies instead", "put the pool on XFS or btrfs for instant clones"
    )


def ports(settings: Settings) -> Finding:
    title = f"ports {settings.listen_port} and {settings.agent_port}"
    taken = []
    for name, address, port in (
        ("plane", settings.listen_address, settings.listen_port),
        ("agent", settings.agent_address, settings.agent_port),
    ):
        if installation.running_pid(settings, name):
            continue
        with socket.socket(socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                taken.append(f"{address}:{port} ({error.strerror})")
    if taken:
        return Finding("ports", title, "fail", ", ".join(taken), "set listen_port and agent_port in stead.toml")
    return Finding("ports", title, "pass", "ours, or free")


def certificates(settings: Settings) -> Finding:
    title = "certificates"
    files = installation.Files.of(settings)
    soonest: tuple[datetime.datetime, Path] | None = None
    for path in (files.ca, files.api.certificate, files.agent.certificate):
        try:
            found = x509.load_pem_x509_certificates(path.read_bytes())[0].not_valid_after_utc
        except (OSError, ValueError):
            continue
        soonest = min(soonest, (found, path)) if soonest else (found, path)
    if soonest is None:
        return Finding(
            "certificates", title, "warn", "none that can be read", "run as root, after the first `stead up`"
        )
    days = (soonest[0] - datetime.datetime.now(datetime.UTC)).days
    text = f"{soonest[1].name} is the first to end, in {days} days"
    if days < 0:
        return Finding("certificates", title, "fail", text, "restart Stead: it renews them")
    return Finding("certificates", title, "pass", text)


def host_name(settings: Settings) -> Finding:
    title = "this host's name"
    try:
        addresses = sorted({str(found[4][0]) for found in socket.getaddrinfo(settings.host, None)})
    except OSError:
        return Finding(
            "host-name", title, "warn", f"{settings.host} does not resolve",
            f"add `127.0.1.1 {settings.host}` to /etc/hosts",
        )  # fmt: skip
    return Finding("host-name", title, "pass", f"{settings.host} is {', '.join(addresses)}")


def clock(settings: Settings) -> Finding:
    title = "the clock is kept"
    code, text = output_of("timedatectl", "show", "-p", "NTPSynchronized", "--value")
    if code == 0 and text == "yes":
        return Finding("clock", title, "pass", "synchronised")
    source = read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    return Finding(
        "clock", title, "warn", f"not known to be synchronised (clock source {source or 'unknown'})",
        "timedatectl set-ntp true; hosts that join may differ by at most 5 s",
    )  # fmt: skip


def open_files(settings: Settings) -> Finding:
    title = "open files"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= hard < 8192:
        return Finding("open-files", title, "warn", f"limit {hard}", "raise LimitNOFILE: each machine takes about 20")
    return Finding("open-files", title, "pass", f"limit {hard}")


def state(settings: Settings) -> Finding:
    title = "state directory"
    if not settings.state_dir.exists():
        return Finding("state", title, "pass", f"{settings.state_dir} will be made")
    if not os.access(settings.state_dir, os.W_OK):
        return Finding("state", title, "warn", f"{settings.state_dir} cannot be written", "run as root")
    return Finding("state", title, "pass", str(settings.state_dir))


CHECKS = (
    account, state, pools, pool_paths, reflink, ports, certificates, host_name, clock, open_files,
)  # fmt: skip

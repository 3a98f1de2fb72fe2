"""dnsmasq's configuration, as text, and its process. The text is pure; starting and ending are blocking calls.

One dnsmasq on the gateway's address answers DNS for all machines of a host, listening there only. One in each machine's
namespace answers DHCP, DHCPv6 and router solicitations for its single guest, and no DNS. They are detached from the
agent: its restart disturbs neither; a pid file and the command line tell which is which. Source: dnsmasq(8) 2.90.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from stead.network.attachment import Attachment, NetworkConfig, NetworkError

_LEASE_SECONDS = 86313600  # KubeVirt's lease time: longer than any guest runs
_END_SECONDS = 3.0


def dns_configuration(config: NetworkConfig, folder: Path) -> str:
    """DNS on the gateway's address only, forwarding to the host's resolvers or `upstream`."""
    lines = [
        f"pid-file={folder / 'dns.pid'}",
        f"listen-address={config.gateway}",
        "bind-interfaces",
        "except-interface=lo",
        "no-hosts",
        "user=nobody",
        "cache-size=1000",
    ]
    if config.upstream:
        lines += ["no-resolv", *(f"server={server}" for server in config.upstream)]
    return "\n".join(lines) + "\n"


def dhcp_configuration(request: Attachment, tap: str, mtu: int, dns: str, folder: Path) -> str:
    """DHCP for one guest: its address, router, resolver, host name, search domains and MTU."""
    network, _, _ = request.guest_cidr.partition("/")
    lines = [
        f"pid-file={folder / 'dhcp.pid'}",
        "port=0",
        f"interface={tap}",
        "bind-dynamic",  # the tap comes after it
        "except-interface=lo",
        "user=nobody",
        "leasefile-ro",
        "dhcp-authoritative",
        "no-ping",
        "log-facility=/dev/null",
        f"dhcp-range={network},static,{_LEASE_SECONDS}",
        f"dhcp-host={request.mac},{_host(request)}{request.guest_ipv4}",
        f"dhcp-option-force=option:router,{request.guest_gateway}",
        f"dhcp-option-force=option:dns-server,{','.join(request.dns or (dns,))}",
        f"dhcp-option-force=option:mtu,{mtu}",
        "enable-ra",
        "ra-param=*,0,0",
        f"dhcp-range={request.guest_ipv6},{request.guest_ipv6},120,{_LEASE_SECONDS}",
    ]
    if request.search_domains:
        lines.append(f"dhcp-option-force=option:domain-search,{','.join(request.search_domains)}")
    if request.tftp_server:
        lines.append(f"dhcp-option-force=option:tftp-server,{request.tftp_server}")
    if request.boot_file:
        lines.append(f"dhcp-option-force=option:bootfile-name,{request.boot_file}")
    lines += [f"dhcp-option-force={number},{value}" for number, value in request.options]
    return "\n".join(lines) + "\n"


def _host(request: Attachment) -> str:
    return f"{request.hostname}," if request.hostname else ""


def start(name: str, folder: Path) -> None:
    """Start dnsmasq with `<folder>/<name>.conf` in the caller's network namespace, unless it runs. Blocking.

    dnsmasq returns when it listens, as a daemon of its own. Raises NetworkError with its own words when it cannot.
    """
    if running_pid(name, folder):
        return
    command = ["dnsmasq", f"--conf-file={folder / f'{name}.conf'}"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkError(f"start dnsmasq with {command[1]}: {error}") from error
    if done.returncode:
        raise NetworkError(f"start dnsmasq with {command[1]}: {done.stderr.decode(errors='replace').strip()}")


def running_pid(name: str, folder: Path) -> int:
    """Pid of the dnsmasq of this configuration, 0 when it does not run."""
    try:
        pid = int((folder / f"{name}.pid").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return 0
    return pid if f"--conf-file={folder / f'{name}.conf'}".encode() in words else 0


def stop(name: str, folder: Path) -> None:
    """End the dnsmasq of this configuration and wait for it. Blocking; bounded."""
    pid = running_pid(name, folder)
    deadline = time.monotonic() + _END_SECONDS
    number = signal.SIGTERM
    while pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        time.sleep(0.005)
        if time.monotonic() > deadline:
            number = signal.SIGKILL
        pid = running_pid(name, folder)

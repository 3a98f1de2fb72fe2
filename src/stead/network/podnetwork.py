"""The pod network of one host: a bridge with the gateway, and a network namespace a machine that joins its guest's own
address (10.0.2.2) with its cluster address.

    guest ── tap ── [namespace: 10.0.2.1, DHCP, NAT] ── eth0 ═ veth ── bridge (10.128.0.1, DNS) ── NAT ── the world

Called by the agent (and, on a Kubernetes node, by nobody: there the launcher pod's namespace serves). A machine's
calls come from its own task; a lock a machine guards the rest. The work is blocking system calls, done in worker
threads. Everything outlives the agent: `open` finds what runs, disturbs none of it, and removes half-made leftovers.
What belongs to whom is told by names (`attachment.py`) and by one folder a machine below `run_dir`.

The tap is made where the hypervisor can open it, in the host's namespace, and moves into the machine's by `settle`,
once the hypervisor holds it: from then on no packet of the guest can reach the host but through the machine's rules.
`attach` brings it back for the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from stead.network import dnsmasq, links, namespaces, nftables, overlay
from stead.network.addresses import is_within, mac_from_seed, overlaps, prefix_of
from stead.network.attachment import Attached, Attachment, NetworkConfig, NetworkError
from stead.network.rules import UPLINK, delete_host_rules, host_rules, machine_rules

__all__ = ["Attached", "Attachment", "NetworkConfig", "NetworkError", "PodNetwork"]

T = TypeVar("T")
THREADS = 8
CALL_SECONDS = 30.0
# All machines' gateways have this MAC: a guest that moved to another host finds the same neighbour there.
GATEWAY_MAC = "02:00:00:00:00:00"
# What was asked for a machine: as long as it is being made, and once all of it is there.
_WANTED, _MADE = "wanted.json", "attachment.json"


class _Host(msgspec.Struct):
    """What `open` changed on the host, kept in `run_dir`, so that `remove` can put it back."""

    bridge_made: bool
    forwarding: str  # net.ipv4.ip_forward as it was


class PodNetwork:
    """See the module."""

    def __init__(self, config: NetworkConfig) -> None:
        self.config = config
        self._folder = Path(config.run_dir)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="network")
        self._locks: dict[str, asyncio.Lock] = {}
        self._furnishing: dict[str, asyncio.Task[None]] = {}
        self._mtu = config.mtu

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        """`work` in a worker thread, with a deadline."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        try:
            return await asyncio.wait_for(future, CALL_SECONDS)
        except TimeoutError as error:
            raise NetworkError(f"{work.__name__.strip('_')}: no end after {CALL_SECONDS:.0f} s") from error
        except OSError as error:
            raise NetworkError(f"{work.__name__.strip('_')}: {error}") from error

    def _lock(self, uid: str) -> asyncio.Lock:
        return self._locks.setdefault(uid, asyncio.Lock())

    # -- the host -------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Make the host's side (idempotent), and reconcile with what an earlier agent left."""
        await self._run(self._open_host)
        await self._run(self._reconcile)

    async def close(self) -> None:
        """Forget; the network goes on."""
        for uid in tuple(self._furnishing):
            await self._finished(uid)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def remove(self) -> None:
        """Undo every change of ours on this host, machines' namespaces included."""
        for uid in await self.list():
            await self.detach(uid)
        await self._run(self._remove_host)

    def _open_host(self) -> None:
        config = self.config
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        with links.netlink() as socket:
            self._refuse_conflicts(socket)
            self._mtu = config.mtu or links.default_mtu(socket) - (overlay.OVERHEAD_BYTES if config.overlay else 0)
            made = links.ensure_bridge(socket, config.bridge, config.gateway, config.prefix, self._mtu)
            if config.overlay:
                overlay.ensure(socket, config, self._mtu)
        forwarding = links.set_sysctl("net.ipv4.ip_forward", "1")
        record = self._folder / "host.json"
        if not record.exists():
            _write(record, msgspec.json.encode(_Host(made, forwarding)))
        nftables.load(host_rules(config), "the host")
        nftables.open_foreign_chains(config)
        _write(self._folder / "dns.conf", dnsmasq.dns_configuration(config, self._folder).encode())
        dnsmasq.start("dns", self._folder)

    def _refuse_conflicts(self, socket: Any) -> None:
        """The range must not be one that the host already lives in."""
        ours = links.index_of(socket, self.config.bridge)
        for address in socket.get_addr(family=2):
            text = f"{address.get('address')}/{address['prefixlen']}"
            if address["index"] != ours and overlaps(text, self.config.pod_cidr):
                raise NetworkError(
                    f"the pod network {self.config.pod_cidr} overlaps with this host's address {text}: "
                    "choose another pod_cidr"
                )

    async def join(self, peers: frozenset[str]) -> None:
        """The other hosts of the cluster, by their addresses on the shared segment. Raises NetworkError."""
        await self._run(self._join, peers)

    def _join(self, peers: frozenset[str]) -> None:
        with links.netlink() as socket:
            overlay.join(socket, self.config, peers)

    def _remove_host(self) -> None:
        config = self.config
        dnsmasq.stop("dns", self._folder)
        nftables.close_foreign_chains(config)
        nftables.load(delete_host_rules(config), "the host")
        record = self._folder / "host.json"
        with contextlib.suppress(OSError, msgspec.DecodeError):
            host = msgspec.json.decode(record.read_bytes(), type=_Host)
            with links.netlink() as socket:
                if config.overlay:
                    overlay.remove(socket, config)
                if host.bridge_made:
                    links.delete_link(socket, config.bridge)
            links.set_sysctl("net.ipv4.ip_forward", host.forwarding)
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- machines -------------------------------------------------------------------------------------------------

    async def list(self) -> set[str]:
        """Machine uids that have a namespace of ours."""
        return await self._run(self._uids)

    def _uids(self) -> set[str]:
        found = (self.config.uid_of_namespace(name) for name in namespaces.names())
        return {uid for uid in found if uid}

    async def attach(self, request: Attachment) -> Attached:
        """Make the machine's namespace and a tap for the next start of its hypervisor; idempotent.

        A running machine is left alone. A machine that is off and whose request changed is made anew. Raises
        NetworkError; then nothing is left behind. Rules and DHCP are made in the background: `settle` waits for them.
        """
        uid = request.machine_uid
        self._validate(request)
        async with self._lock(uid):
            await self._finished(uid)
            attached, made = await self._run(self._attach, request)
            if made:
                work = self._run(self._furnish, request)
                self._furnishing[uid] = asyncio.get_running_loop().create_task(work)
            return attached

    async def _finished(self, uid: str) -> None:
        """Wait for what `attach` left to do; its failure is `settle`'s to tell."""
        task = self._furnishing.pop(uid, None)
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    def _attach(self, request: Attachment) -> tuple[Attached, bool]:
        """(what the hypervisor needs, whether the namespace was made now and lacks its rules)."""
        uid, config = request.machine_uid, self.config
        if namespaces.exists(config.namespace(uid)):
            known = self._known(uid)
            if known is not None and (known == request or self._is_running(uid)):
                self._bring_back(known)
                return self._attached(known), False
            self._detach(uid)
        with contextlib.ExitStack() as undo:
            undo.callback(self._detach, uid)
            self._make(request)
            undo.pop_all()
        return self._attached(request), True

    def _validate(self, request: Attachment) -> None:
        if request.binding != "masquerade":
            raise NetworkError(
                f"interface {request.interface}: the pod network offers the binding masquerade, not {request.binding}"
            )
        if not is_within(request.ipv4, self.config.pod_cidr):
            raise NetworkError(f"interface {request.interface}: {request.ipv4} is not in {self.config.pod_cidr}")
        for protocol, port in request.ports:
            if not 0 < port < 65536:
                raise NetworkError(f"interface {request.interface}: {protocol} port {port} is not between 1 and 65535")

    def _attached(self, request: Attachment) -> Attached:
        uid = request.machine_uid
        return Attached(
            nic_backend="tap",
            target=self.config.tap(uid),
            mac=request.mac,
            mtu=request.mtu or self._mtu,
            address=request.ipv4,
            netns=str(namespaces.path_of(self.config.namespace(uid))),
        )

    def _make(self, request: Attachment) -> None:
        uid, config = request.machine_uid, self.config
        tap, namespace, mtu = config.tap(uid), config.namespace(uid), request.mtu or self._mtu
        folder = self._folder / uid
        folder.mkdir(mode=0o755, exist_ok=True)
        _write(folder / _WANTED, msgspec.json.encode(request))
        namespaces.create(namespace)
        links.ensure_tap(tap, request.owner_uid, request.queues)
        with links.netlink() as socket:
            socket.link("set", index=links.index_of(socket, tap), mtu=mtu)
            peer = (UPLINK, namespaces.path_of(namespace))
            links.add_veth(socket, config.veth(uid), config.bridge, peer, self._mtu)

    def _furnish(self, request: Attachment) -> None:
        """In the machine's namespace: its cluster address, the way out, forwarding, rules and DHCP.

        Done while the hypervisor starts: the kernel alone takes 15 ms to commit the rules.
        """
        uid, config = request.machine_uid, self.config
        tap, folder, mtu = config.tap(uid), self._folder / uid, request.mtu or self._mtu
        dhcp = dnsmasq.dhcp_configuration(request, tap, mtu, config.gateway, folder)
        _write(folder / "dhcp.conf", dhcp.encode())
        with namespaces.inside(config.namespace(uid)):
            with links.netlink() as socket:
                socket.link("set", index=links.index_of(socket, "lo"), state="up")
                uplink = links.index_of(socket, UPLINK)
                # An address keeps its MAC over restarts: what neighbours remember of it stays true.
                socket.link("set", index=uplink, address=mac_from_seed(f"uplink {request.ipv4}"))
                links.ensure_address(socket, uplink, request.ipv4, config.prefix)
                if not request.standby:
                    socket.link("set", index=uplink, state="up")
                    socket.route("replace", dst="default", gateway=config.gateway)
            nftables.load(machine_rules(request, tap, config.gateway), uid)
            links.set_sysctl("net.ipv4.ip_forward", "1")
            dnsmasq.start("dhcp", folder)
        (folder / _WANTED).rename(folder / _MADE)  # last: its presence says that all is made

    async def settle(self, uid: str) -> None:
        """Move the tap into the machine's namespace, once its rules are there; right after a start. Idempotent.

        Raises NetworkError also for what `attach` had left to do and failed.
        """
        async with self._lock(uid):
            task = self._furnishing.pop(uid, None)
            if task is not None:
                await task
            await self._run(self._settle, uid)

    def _settle(self, uid: str) -> None:
        request = self._known(uid)
        if request is None:
            raise NetworkError(f"settle {uid}: the machine is not attached")
        tap, namespace = self.config.tap(uid), self.config.namespace(uid)
        with links.netlink() as socket:
            if links.index_of(socket, tap):
                links.move_link(socket, tap, namespaces.path_of(namespace))
        with namespaces.inside(namespace):
            with links.netlink() as socket:
                index = links.index_of(socket, tap)
                if not index:
                    raise NetworkError(f"settle {uid}: its tap {tap} does not exist")
                socket.link("set", index=index, address=GATEWAY_MAC)
                links.ensure_address(socket, index, request.guest_gateway, prefix_of(request.guest_cidr))
                with contextlib.suppress(NetworkError):  # a host whose IPv6 is off
                    links.ensure_address(socket, index, request.guest_gateway_v6, prefix_of(request.guest_cidr_v6))
                socket.link("set", index=index, state="up")
            dnsmasq.start("dhcp", self._folder / uid)

    async def announce(self, uid: str) -> None:
        """The guest runs here now: bring its address up and tell the neighbours. Idempotent. Raises NetworkError."""
        async with self._lock(uid):
            await self._run(self._announce, uid)

    def _announce(self, uid: str) -> None:
        request = self._known(uid)
        if request is None:
            raise NetworkError(f"announce {uid}: the machine is not attached")
        if not request.standby:
            return
        with namespaces.inside(self.config.namespace(uid)):
            with links.netlink() as socket:
                socket.link("set", index=links.index_of(socket, UPLINK), state="up")
                socket.route("replace", dst="default", gateway=self.config.gateway)
            links.announce_address(UPLINK, mac_from_seed(f"uplink {request.ipv4}"), request.ipv4)
        settled = msgspec.structs.replace(request, standby=False)
        _write(self._folder / uid / _MADE, msgspec.json.encode(settled))

    async def withdraw(self, uid: str) -> None:
        """The guest runs on another host now: nothing here answers for its address. Raises NetworkError."""
        async with self._lock(uid):
            await self._run(self._withdraw, uid)

    def _withdraw(self, uid: str) -> None:
        with namespaces.inside(self.config.namespace(uid)), links.netlink() as socket:
            socket.link("set", index=links.index_of(socket, UPLINK), state="down")

    def _bring_back(self, request: Attachment) -> None:
        """Of a machine that is off: its tap, to the host's namespace, where the hypervisor opens it."""
        uid = request.machine_uid
        tap, namespace = self.config.tap(uid), self.config.namespace(uid)
        with links.netlink() as socket:
            if links.index_of(socket, tap) or self._is_running(uid):
                return
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with namespaces.inside(namespace), links.netlink() as socket:
                if links.index_of(socket, tap):
                    links.move_link(socket, tap, here)
        finally:
            os.close(here)
        links.ensure_tap(tap, request.owner_uid, request.queues)
        with links.netlink() as socket:
            socket.link("set", index=links.index_of(socket, tap), state="down", mtu=request.mtu or self._mtu)

    def _is_running(self, uid: str) -> bool:
        """Whether a hypervisor has the tap open, wherever it is."""
        tap, namespace = self.config.tap(uid), self.config.namespace(uid)
        with links.netlink() as socket:
            if links.index_of(socket, tap):
                return links.has_carrier(socket, tap)
        with contextlib.suppress(NetworkError), namespaces.inside(namespace), links.netlink() as socket:
            return bool(links.index_of(socket, tap)) and links.has_carrier(socket, tap)
        return False  # a name without a namespace: half made

    async def detach(self, uid: str) -> None:
        """Remove all that a machine has here; no-op when there is nothing."""
        async with self._lock(uid):
            await self._finished(uid)
            await self._run(self._detach, uid)
        self._locks.pop(uid, None)

    def _detach(self, uid: str) -> None:
        config = self.config
        dnsmasq.stop("dhcp", self._folder / uid)
        with links.netlink() as socket:
            links.delete_link(socket, config.veth(uid))
            links.delete_link(socket, config.tap(uid))
        if namespaces.exists(config.namespace(uid)):
            with contextlib.suppress(NetworkError):  # a name without a namespace: half made
                with namespaces.inside(config.namespace(uid)), links.netlink() as socket:
                    links.delete_link(socket, config.tap(uid))
            namespaces.delete(config.namespace(uid))
        shutil.rmtree(self._folder / uid, ignore_errors=True)

    async def statistics(self, uid: str) -> dict[str, float]:
        """Counters of the guest's interface, seen from the guest: `network.<interface>.receive_bytes` and so on."""
        return await self._run(self._statistics, uid)

    def _statistics(self, uid: str) -> dict[str, float]:
        request = self._known(uid)
        if request is None:
            return {}
        with namespaces.inside(self.config.namespace(uid)), links.netlink() as socket:
            index = links.index_of(socket, self.config.tap(uid))
            if not index:
                return {}
            raw = socket.get_links(index)[0].get("stats64") or {}
        ours = {"receive": "tx", "transmit": "rx"}  # what the tap sends, the guest receives
        kinds = {"bytes": "bytes", "packets": "packets", "errors": "errors", "packets_dropped": "dropped"}
        return {
            f"network.{request.interface}.{way}_{name}": float(raw.get(f"{theirs}_{kind}", 0))
            for way, theirs in ours.items()
            for name, kind in kinds.items()
        }

    # -- after a restart of the agent -----------------------------------------------------------------------------

    def _known(self, uid: str, name: str = _MADE) -> Attachment | None:
        try:
            return msgspec.json.decode((self._folder / uid / name).read_bytes(), type=Attachment)
        except (OSError, msgspec.DecodeError, msgspec.ValidationError):
            return None

    def _reconcile(self) -> None:
        """Adopt complete attachments and finish those of running machines; remove half-made ones, and interfaces that
        belong to none.
        """
        uids = self._uids()
        for uid in uids:
            running, wanted = self._is_running(uid), self._known(uid, _WANTED)
            if running and wanted is not None:
                self._furnish(wanted)
            if self._known(uid) is None:
                self._detach(uid)
            elif running:
                self._settle(uid)
        kept = {name for uid in uids for name in (self.config.tap(uid), self.config.veth(uid))}
        with links.netlink() as socket:
            for name in links.names(socket):
                if name.startswith(self.config.mark) and len(name) == len(self.config.tap("")) and name not in kept:
                    links.delete_link(socket, name)
        for folder in self._folder.iterdir():
            if folder.is_dir() and folder.name not in uids:
                shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    draft = path.with_name(path.name + ".new")
    draft.write_bytes(data)
    draft.replace(path)

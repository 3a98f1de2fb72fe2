"""What all machine tasks of a host share: tools, settings, records. Made once by `agent.py`, passed to each
`Machine`.

Nothing here belongs to one machine, except the book of disks in use, which keeps two machines from writing one disk.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from stead.agent.disks import Disks
from stead.agent.events import Events
from stead.agent.identity import Identities
from stead.agent.lookups import Lookups
from stead.agent.migration_keys import MigrationKeys
from stead.agent.nets import Nets
from stead.agent.peers import Peers
from stead.agent.persistence import Persistence
from stead.agent.prepared import NotReady, Prepared
from stead.agent.record import Records
from stead.client.contract import Client
from stead.hypervisor.contract import Capabilities, Hypervisor

Object = dict[str, Any]

#: machines that are prepared and started at the same time on one host
PARALLEL_STARTS = 8


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Plain values that `run` passes in. `machines_dir` and `run_dir` must be traversable (0711) for machines'
    processes.
    """

    instance: str
    host_name: str
    machines_dir: Path
    run_dir: Path
    state_dir: Path
    agent_address: str = "127.0.0.1"
    agent_port: int = 6444
    uid_base: int = 1_610_612_736
    host_disk_roots: tuple[Path, ...] = ()
    #: common names of client certificates that may call the agent
    plane_names: tuple[str, ...] = ("stead-plane",)
    #: pool name → pool uid, for the Node's labels
    pool_labels: dict[str, str] = {}
    #: folders whose file systems count for DiskPressure
    watched_folders: tuple[Path, ...] = ()
    pids_limit: int = 4096


class DisksInUse:
    """Which machine writes which disk. Loop-confined."""

    def __init__(self) -> None:
        self._users: dict[str, set[str]] = {}
        self._shared: set[str] = set()

    def take(self, machine: str, path: str, *, shared: bool) -> None:
        """Note a user; NotReady when another machine holds the disk and not both share it."""
        users = self._users.setdefault(path, set())
        others = users - {machine}
        if others and not (shared and path in self._shared):
            raise NotReady("VolumeInUse", f"disk {path} is in use by another machine of this host", 3)
        users.add(machine)
        if shared:
            self._shared.add(path)

    def free(self, machine: str) -> None:
        """The machine uses nothing any more."""
        for path, users in list(self._users.items()):
            users.discard(machine)
            if not users:
                del self._users[path]
                self._shared.discard(path)

    def take_all(self, machine: str, prepared: Prepared) -> None:
        """Note what an adopted machine holds, whatever others hold: it runs already."""
        for volume in prepared.volumes:
            if volume.claim and volume.kind != "ephemeral":
                self._users.setdefault(volume.path, set()).add(machine)


class Workshop:
    """See the module's prose. `capabilities` is set once the hypervisor has been opened."""

    def __init__(
        self, client: Client, hypervisor: Hypervisor, disks: Disks, nets: Nets, settings: AgentSettings
    ) -> None:
        self.client = client
        self.lookups = Lookups(client)
        self.hypervisor = hypervisor
        self.disks = disks
        self.nets = nets
        self.settings = settings
        self.records = Records(settings.machines_dir)
        self.identities = Identities(settings.state_dir / "identities.json", settings.uid_base)
        self.persistence = Persistence(settings.state_dir / "persistent")
        self.vsock = Path("/dev/vhost-vsock").exists()
        self.events = Events(client, settings.host_name)
        self.disks_in_use = DisksInUse()
        self.slots = asyncio.Semaphore(PARALLEL_STARTS)
        self.capabilities: Capabilities | None = None
        #: both None on a host that does not migrate machines
        self.migration_keys: MigrationKeys | None = None
        self.peers: Peers | None = None

    def known_capabilities(self) -> Capabilities:
        """The hypervisor's capabilities; NotReady before it has been reached."""
        if self.capabilities is None:
            raise NotReady("HypervisorUnavailable", "the hypervisor has not been reached yet", 2)
        return self.capabilities

    @property
    def sockets_dir(self) -> Path:
        """Where machines' run directories lie."""
        return self.settings.run_dir / "machines"

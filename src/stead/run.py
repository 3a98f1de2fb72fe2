"""The composition root: the only module that knows concrete classes of several rooms.

`main_plane` and `main_agent` are the two processes of an installation (see the picture in `docs/flow.md`): each reads
settings, builds its parts from the ground up, serves until SIGTERM, and takes them down in reverse. `remove` undoes
what an agent has done to the host. Concurrency: one event loop a process; blocking work is the rooms' own business.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from stead import installation, pki, telemetry
from stead.config import ANY_ADDRESS, ConfigError, Settings
from stead.images.sources import Policy
from stead.network.addresses import gateway_of
from stead.network.attachment import NetworkConfig
from stead.store.contract import StoreFailure
from stead.store.keyring import KeyringError
from stead.store.migrations import TooNew

if TYPE_CHECKING:
    from stead.agent.migration_keys import MigrationKeys
    from stead.server.oidc import OidcSettings

log = structlog.get_logger(__name__)

#: How often a process looks whether its certificate was renewed, seconds.
RELOAD_SECONDS = 60.0
#: How long a process may take to end its own work after SIGTERM, seconds.
STOP_SECONDS = 10.0


def main_plane(settings: Settings) -> None:
    """Run the plane until SIGTERM. Ends the process with 1 and one sentence when it cannot start."""
    _run("plane", settings, serve_plane)


def main_agent(settings: Settings) -> None:
    """Run the agent until SIGTERM; as `main_plane`."""
    _run("agent", settings, serve_agent)


def _run(what: str, settings: Settings, serve: Callable[[Settings, asyncio.Event], Awaitable[None]]) -> None:
    telemetry.configure(what, settings.log_level, settings.log_format)

    async def main() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        await serve(settings, stopping)

    try:
        with installation.running(settings, what):
            asyncio.run(main())
    except (ConfigError, installation.AlreadyRunning, StoreFailure, KeyringError, TooNew, OSError) as error:
        log.error("cannot run", process=what, error=str(error))
        sys.exit(1)


async def serve_plane(settings: Settings, stopping: asyncio.Event) -> None:
    """Store, API server, controllers; returns when `stopping` is set and all is down."""
    from stead.controllers.start import ControllerOptions, run_controllers
    from stead.server import audit_policy
    from stead.server.api import ApiServer
    from stead.server.api import Settings as ApiSettings
    from stead.server.joins import Signing
    from stead.server.roles import image_roles
    from stead.server.serve import Listener, Listening
    from stead.store import location
    from stead.store.copies import seal_plain
    from stead.store.keyring import read as read_keyring
    from stead.store.sealed import SealedStore
    from stead.store.sqlite import SqliteStore

    files = installation.Files.of(settings)
    key = load_pem_private_key(files.token_key.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{files.token_key} is not an elliptic curve key")
    keyring = await asyncio.to_thread(read_keyring, *settings.secrets_key_source)
    place = location.of(settings)
    kept = await location.open_store(place)
    agent_tls = pki.client_context(files.ca, files.plane)
    async with contextlib.AsyncExitStack() as undo:
        undo.push_async_callback(kept.close)
        store = await SealedStore.open(kept, keyring)
        if store.resealed:
            if isinstance(kept, SqliteStore):  # in etcd no Secret was ever in plain
                await kept.scrub()
            log.info("Secrets sealed with the newest key", count=store.resealed)
        for copy in await asyncio.to_thread(seal_plain, settings.plane_dir / "store.db", keyring):
            log.info("a copy of the store for going back is sealed; `stead store open-copy` opens it", path=str(copy))
        api = ApiServer(
            store,
            ApiSettings(
                token_key=key,
                address=settings.url.removeprefix("https://"),
                audit_path=settings.plane_dir / "audit.log",
                audit_policy=audit_policy.load(Path(settings.audit_policy) if settings.audit_policy else None),
                agent_tls=agent_tls,
                oidc=_oidc(settings),
                signing=Signing(
                    authority=files.authority,
                    life=datetime.timedelta(seconds=settings.certificate_seconds),
                    reserved=frozenset(installation.api_names(settings)),
                ),
            ),
        )
        await api.start()
        undo.push_async_callback(api.stop)
        listener = Listener(
            api.app,
            Listening(
                host=settings.listen_address,
                port=settings.listen_port,
                certificate=files.api.certificate,
                key=files.api.key,
                client_ca=files.authority.certificate,
            ),
        )
        await listener.start()
        undo.push_async_callback(listener.stop)
        undo.callback(api.app.stop)
        options = ControllerOptions(
            pod_cidr=settings.pod_cidr,
            root_ca=files.ca.read_text(encoding="utf-8"),
            roles=tuple(image_roles()),
            upload_url=settings.url,
            upload_ca=files.ca.read_text(encoding="utf-8"),
            # Any number of planes share a cluster, and one of them leads.
            identity=f"{settings.host}-{settings.instance}-{os.getpid()}" if place.members else "",
            node_grace_seconds=settings.host_grace_seconds,
            fencer=settings.fencer_command,
        )
        await undo.enter_async_context(_background(api.run_until_broken(), stopping))
        await undo.enter_async_context(_background(run_controllers(api.local_client(), options), stopping))
        renewed = {
            files.api.certificate: listener.reload_certificate,
            files.plane.certificate: lambda: agent_tls.load_cert_chain(files.plane.certificate, files.plane.key),
            files.ca: stopping.set,  # another CA: trust and published copies of it follow by a fresh start
            **({place.certificate: stopping.set, place.ca: stopping.set} if place.members else {}),
        }
        await undo.enter_async_context(_background(_reload(renewed, _reload_seconds(settings)), stopping))
        log.info("plane serves", url=settings.url)
        await stopping.wait()
        log.info("plane stops")


def _oidc(settings: Settings) -> OidcSettings | None:
    from stead.server.oidc import OidcSettings

    if not settings.oidc_issuer_url:
        return None
    return OidcSettings(
        issuer=settings.oidc_issuer_url,
        client_id=settings.oidc_client_id,
        username_claim=settings.oidc_username_claim,
        username_prefix=settings.oidc_username_prefix,
        groups_claim=settings.oidc_groups_claim,
        groups_prefix=settings.oidc_groups_prefix,
        ca=settings.oidc_ca_file,
    )


def _migration_keys(settings: Settings) -> MigrationKeys:
    from stead.agent.migration_keys import MigrationKeys

    names = (settings.host, settings.agent_address)
    return MigrationKeys(Path(settings.migration_tls_dir), settings.agent_dir / "migration", names)


def _network(settings: Settings) -> NetworkConfig:
    return NetworkConfig(
        instance=settings.instance,
        bridge=settings.pod_bridge,
        pod_cidr=settings.pod_cidr,
        run_dir=str(settings.run_dir / "network"),
        overlay=settings.pod_overlay,
    )


def _policy(settings: Settings) -> Policy:
    """What importers may reach: never our own endpoints, nor loopback unless the administrator listed it."""
    ends = (settings.listen_address, settings.listen_port), (settings.agent_address, settings.agent_port)
    own = (f"{'*' if address in ANY_ADDRESS else address}:{port}" for address, port in ends)
    return Policy(allowed=settings.importer_allowed_networks, forbidden=(*own, gateway_of(settings.pod_cidr)))


async def serve_agent(settings: Settings, stopping: asyncio.Event) -> None:
    """Network, pools, hypervisor, machines; returns when `stopping` is set. Guests go on running."""
    from stead.agent.agent import Agent, AgentDeps
    from stead.agent.backup_places import Places
    from stead.agent.exports import Exports
    from stead.agent.machine import Machine
    from stead.agent.neighbours import Neighbours
    from stead.agent.snapshots import Snapshots
    from stead.agent.stock import Stock
    from stead.agent.volumes import Hooks, Volumes, VolumeSettings
    from stead.agent.workshop import AgentSettings
    from stead.client.kubeconfig import Endpoint
    from stead.client.remote import RemoteClient
    from stead.hypervisor import drivers
    from stead.images.containerdisks import ContainerDisks
    from stead.network.podnetwork import PodNetwork
    from stead.storage.pools import Pool

    files = installation.Files.of(settings)
    pools = {
        pool.name: await asyncio.to_thread(Pool, pool.path, pool.name, settings.instance) for pool in settings.all_pools
    }
    options: dict[str, Any] = {}
    if settings.hypervisor == "libvirt":
        options = {"uri": settings.libvirt_uri, "state_dir": settings.agent_dir, "instance": settings.instance}
    agents: list[Agent] = []

    def uses_disk(path: Path | str) -> bool:
        return any(agent.uses_disk(str(path)) for agent in agents)

    def resized(path: str, size_bytes: int) -> None:
        for agent in agents:
            agent.resized(path, size_bytes)

    def machine_with(path: str) -> Machine | None:
        return agents[0].machine_with(path) if agents else None

    disks = ContainerDisks(settings.agent_dir / "container-disks", settings.container_disk_cache_bytes, uses_disk)
    async with contextlib.AsyncExitStack() as undo:
        client = RemoteClient(
            Endpoint(
                server=settings.url,
                ca=files.ca.read_bytes(),
                certificate=files.agent.certificate.read_bytes(),
                key=files.agent.key.read_bytes(),
            )
        )
        undo.push_async_callback(client.close)
        network = PodNetwork(_network(settings))
        await network.open()
        undo.push_async_callback(network.close)
        volumes = Volumes(
            client,
            pools,
            VolumeSettings(
                host_name=settings.host,
                policy=_policy(settings),
                insecure_registries=settings.insecure_registries,
            ),
            Hooks(is_in_use=uses_disk, resized=resized),
        )
        snapshots = Snapshots(client, pools.values(), settings.host, machine_with)
        tls = pki.server_context(files.agent, files.ca, require_client=True)
        peer_tls = pki.client_context(files.ca, files.agent)
        companions: tuple[Callable[[], Awaitable[None]], ...] = (volumes.run, snapshots.run)
        if settings.pod_overlay:
            companions += (Neighbours(client, network, settings.host).run,)
        keys = _migration_keys(settings)
        agent = Agent(
            AgentDeps(
                client=client,
                hypervisor=drivers.create(settings.hypervisor, **options),
                materials=Stock(pools.values(), disks, _policy(settings), settings.insecure_registries.__contains__),
                settings=AgentSettings(
                    instance=settings.instance,
                    host_name=settings.host,
                    machines_dir=settings.agent_dir / "machines",
                    run_dir=settings.run_dir,
                    state_dir=settings.agent_dir,
                    agent_address=settings.agent_address,
                    agent_port=settings.agent_port,
                    uid_base=settings.uid_base,
                    host_disk_roots=settings.host_disk_roots,
                    plane_names=(installation.PLANE_USER,),
                    pool_labels={pool.name: pool.uid for pool in pools.values()},
                    watched_folders=tuple(pool.path for pool in pools.values()),
                ),
                pod_networks=network,
                uploads=volumes,
                exports=Exports(pools.values(), uses_disk),
                backup_places=Places(
                    client, settings.all_backup_roots, settings.agent_dir / "backup-cache", _policy(settings)
                ),
                tls=tls,
                peer_tls=peer_tls,
                migration_keys=keys,
                companions=companions,
            )
        )
        agents.append(agent)
        await agent.open()
        undo.push_async_callback(agent.close)

        def renew() -> None:
            for context in (tls, peer_tls):
                context.load_cert_chain(files.agent.certificate, files.agent.key)
            client.renew(files.agent.certificate.read_bytes(), files.agent.key.read_bytes())

        # Another CA is taken up by a fresh start, which disturbs no guest.
        renewed = {files.agent.certificate: renew, files.ca: stopping.set}
        await undo.enter_async_context(_background(_reload(renewed, _reload_seconds(settings)), stopping))
        if settings.is_joined:
            from stead.client import joining

            await undo.enter_async_context(_background(joining.keep_renewed(settings), stopping))
        log.info("agent serves", host=settings.host, port=agent.port)
        await stopping.wait()
        log.info("agent stops; its machines go on")


async def remove(settings: Settings) -> None:
    """Undo what Stead made on this host: bridge, rules, state, keys. Only when nothing of ours runs any more."""
    from stead.hypervisor.libvirt import passage, process
    from stead.network.podnetwork import PodNetwork

    network = PodNetwork(_network(settings))
    await network.remove()
    await network.close()
    await asyncio.to_thread(_migration_keys(settings).remove)
    await asyncio.to_thread(passage.restore, settings.agent_dir)
    await asyncio.to_thread(process.forget_limits)
    await asyncio.to_thread(installation.forget, settings)


@contextlib.asynccontextmanager
async def _background(work: Awaitable[None], stopping: asyncio.Event) -> AsyncIterator[None]:
    """Run `work` beside the body; its failure stops the process, leaving ends it."""

    async def guarded() -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("a part of this process failed")
            stopping.set()

    task = asyncio.create_task(guarded())
    await asyncio.sleep(0)  # so that the work has begun: a task that is cancelled before never awaits it
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, TimeoutError):
            await asyncio.wait_for(task, STOP_SECONDS)


def _reload_seconds(settings: Settings) -> float:
    return min(RELOAD_SECONDS, settings.certificate_seconds / 60)


async def _reload(renewed: Mapping[Path, Callable[[], None]], seconds: float) -> None:
    """Call what belongs to a file whenever the file has been replaced. A certificate is written after its key."""
    seen = {path: path.stat().st_mtime_ns for path in renewed}
    while True:
        await asyncio.sleep(seconds)
        for path, reload in renewed.items():
            found = path.stat().st_mtime_ns
            if found == seen[path]:
                continue
            try:
                reload()
            except OSError as error:  # written a moment ago, and not given to our account yet: next time
                log.warning("a renewed certificate cannot be read yet", path=str(path), error=str(error))
                continue
            seen[path] = found
            log.info("certificate renewed", path=str(path))

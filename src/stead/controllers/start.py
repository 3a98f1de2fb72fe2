"""All controllers of rungs 1 and 2, put together: one call starts them, cancelling it stops them.

Called by `stead.run` in the plane's process. A controller that crashes (a bug, not a failed pass) is started again with
back-off and logged; the others go on. With several planes one leads by a Lease, the others wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from stead.client.contract import Client
from stead.client.informer import Informers
from stead.client.lease import LeaderElection, LeaseTerms
from stead.client.queue import Backoff, QueueHooks
from stead.controllers.addresses import Addresses
from stead.controllers.aggregation import Aggregation
from stead.controllers.backups import Backups, KubeVirtBackups, Schedules
from stead.controllers.bootstrap import bootstrap
from stead.controllers.classes import Classes
from stead.controllers.clone import Clones
from stead.controllers.datasource import DataSources
from stead.controllers.disk import Disks
from stead.controllers.evacuation import Evacuations
from stead.controllers.events import Recorder, expire_events
from stead.controllers.export import Exports
from stead.controllers.fencing import Fencing
from stead.controllers.foreign import ForeignGarbage
from stead.controllers.healing import Healing
from stead.controllers.hosts import GRACE_SECONDS, Hosts
from stead.controllers.importcron import ImportCrons
from stead.controllers.instance import Instances
from stead.controllers.machine import Machines
from stead.controllers.migration import Migrations
from stead.controllers.namespaces import Namespaces
from stead.controllers.profiles import Profiles
from stead.controllers.quota import QuotaCounts
from stead.controllers.restore import Restores
from stead.controllers.runner import Controller, World, run_controller
from stead.controllers.snapshot import MachineSnapshots
from stead.controllers.volume_snapshots import VolumeSnapshots
from stead.controllers.volumes import Volumes
from stead.kinds.register import ALL, EVENT, LEASE
from stead.kinds.resource import Resource

log = structlog.get_logger(__name__)

Object = dict[str, Any]
COMPONENT = "virtualmachine-controller"


class ControllerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Plain values from `run`. `identity` set = several planes: lead by Lease kube-system/stead-controllers."""

    pod_cidr: str = "10.128.0.0/16"
    #: PEM of the API's certificate authority, for kube-root-ca.crt
    root_ca: str = ""
    #: RBAC objects to create and refresh
    roles: tuple[Object, ...] = ()
    #: where the API is reached and what vouches for it: uploads and downloads go there
    upload_url: str = ""
    upload_ca: str = ""
    identity: str = ""
    node_grace_seconds: float = GRACE_SECONDS
    #: program that makes sure that a host is off; none = only administrators do
    fencer: tuple[str, ...] = ()
    #: makes the metrics hooks of a queue from the controller's name
    hooks: Callable[[str], QueueHooks] | None = None


def storable(resources: Sequence[Resource] = ALL) -> tuple[Resource, ...]:
    """Kinds that are stored and listed, without a second face of another one and without Events."""
    return tuple(r for r in resources if {"list", "watch"} <= set(r.verbs) and r.kind != EVENT.kind)


def all_controllers(world: World, options: ControllerOptions) -> list[Controller]:
    """Every controller but the garbage collector, wired to the world's informers."""
    kinds = storable()
    addresses, healing = Addresses(world, options.pod_cidr), Healing(world)
    instances = Instances(world, addresses)
    found = [
        Machines(world).controller(),
        instances.controller(),
        Migrations(world, instances.place_elsewhere).controller(),
        Evacuations(world).controller(),
        addresses.controller(),
        Disks(world).controller(),
        *Volumes(world).controllers(),
        VolumeSnapshots(world).controller(),
        MachineSnapshots(world).controller(),
        Restores(world).controller(),
        Clones(world).controller(),
        Exports(world, url=options.upload_url, ca=options.upload_ca).controller(),
        DataSources(world).controller(),
        Backups(world).controller(),
        Schedules(world).controller(),
        KubeVirtBackups(world).controller(),
        ImportCrons(world).controller(),
        Classes(world).controller(),
        Aggregation(world).controller(),
        *Profiles(world, upload_url=options.upload_url, upload_ca=options.upload_ca).controllers(),
        Namespaces(world, (*kinds, EVENT), options.root_ca).controller(),
        QuotaCounts(world).controller(),
        Hosts(world, grace_seconds=options.node_grace_seconds).controller(),
        healing.controller(),
        *([Fencing(world, healing, options.fencer).controller()] if options.fencer else []),
    ]
    if options.hooks is not None:
        for controller in found:
            controller.hooks = options.hooks(controller.name)
    return found


async def run_controllers(
    client: Client, options: ControllerOptions | None = None, *, on_ready: Callable[[], None] | None = None
) -> None:
    """Bootstrap, then run every controller until cancelled. `on_ready` is called once all informers are in."""
    options = options or ControllerOptions()

    async def work() -> None:
        await _run_all(client, options, on_ready)

    if not options.identity:
        await work()
        return
    terms = LeaseTerms("kube-system", "stead-controllers", options.identity)
    await LeaderElection(client, LEASE, terms).run(work)


async def _run_all(client: Client, options: ControllerOptions, on_ready: Callable[[], None] | None) -> None:
    await _bootstrap(client, options)
    informers = Informers(client)
    recorder = Recorder(client, COMPONENT)
    world = World(client, informers, recorder)
    controllers = all_controllers(world, options)
    garbage = ForeignGarbage(world, storable(), options.hooks)
    informers.start()
    try:
        await informers.wait_synced()
        if on_ready is not None:
            on_ready()
        async with asyncio.TaskGroup() as group:
            group.create_task(_supervise("events", recorder.run), name="events")
            group.create_task(_supervise("event expiry", lambda: expire_events(client)), name="event expiry")
            group.create_task(_supervise("garbage", garbage.run), name="garbage")
            for controller in controllers:
                group.create_task(_supervise(controller.name, _runner(controller)), name=controller.name)
    finally:
        await informers.stop()


def _runner(controller: Controller) -> Callable[[], Any]:
    return lambda: run_controller(controller)


async def _bootstrap(client: Client, options: ControllerOptions) -> None:
    backoff, failures = Backoff(base=0.2, cap=10.0), 0
    while True:
        try:
            await bootstrap(client, lambda: datetime.now(UTC), roles=options.roles)
            return
        except Exception as error:
            failures += 1
            log.warning("bootstrap failed", error=repr(error), failures=failures)
            await asyncio.sleep(backoff.delay(failures))


async def _supervise(name: str, run: Callable[[], Any]) -> None:
    """Run, and run again after a crash, waiting longer each time; a quiet hour forgets the past."""
    backoff, failures = Backoff(base=0.5, cap=60.0), 0
    loop = asyncio.get_running_loop()
    while True:
        started = loop.time()
        try:
            await run()
            return
        except Exception:
            if loop.time() - started > 3600:
                failures = 0
            failures += 1
            delay = backoff.delay(failures)
            log.exception("controller crashed", controller=name, again_in=delay)
        await asyncio.sleep(delay)

"""Garbage collection over our own kinds and those that users define.

Started by `controllers.start`. When the set of kinds changes, the collector ends and a new one begins over all kinds
that there are now; foreign kinds have informers of their own, which end with it. The collector is level-triggered, so
nothing is lost by that. Runs on the event loop of the plane's controllers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from stead.client.informer import Informer, Informers
from stead.client.queue import QueueHooks
from stead.controllers.garbage import Garbage
from stead.controllers.runner import World, run_controller
from stead.kinds.foreign import stored_resources
from stead.kinds.register import CUSTOM_RESOURCE_DEFINITION
from stead.kinds.resource import Resource

#: definitions often come several at a time: how long to wait for more before the collector begins anew, seconds
SETTLE_SECONDS = 0.2


class _WithForeign(Informers):
    """The shared informers, and short-lived ones for foreign kinds."""

    def __init__(self, shared: Informers) -> None:
        super().__init__(shared.client)
        self._shared = shared

    def of(self, resource: Resource) -> Informer:
        """The informer of a kind."""
        return super().of(resource) if resource.edition else self._shared.of(resource)


class ForeignGarbage:
    """See the module's prose. `resources`: our own kinds."""

    def __init__(
        self, world: World, resources: tuple[Resource, ...], hooks: Callable[[str], QueueHooks] | None = None
    ) -> None:
        self._world = world
        self._resources = resources
        self._hooks = hooks
        self._definitions = world.informers.of(CUSTOM_RESOURCE_DEFINITION)
        for resource in resources:
            world.informers.of(resource)

    def _kinds(self) -> tuple[Resource, ...]:
        return stored_resources(self._definitions.objects())

    async def run(self) -> None:
        """Collect until cancelled."""
        changed = asyncio.Event()

        def note(_old: object, _new: object) -> None:
            changed.set()

        self._definitions.add_listener(note)
        try:
            while True:
                await self._collect(changed)
        finally:
            self._definitions.remove_listener(note)

    async def _collect(self, changed: asyncio.Event) -> None:
        """Run a collector over the kinds of now, until they are others. Raises what the collector raises."""
        kinds = self._kinds()
        informers = _WithForeign(self._world.informers)
        world = World(self._world.client, informers, self._world.recorder)
        controller = Garbage(world, (*self._resources, *kinds)).controller()
        if self._hooks is not None:
            controller.hooks = self._hooks(controller.name)
        informers.start()
        collecting = asyncio.create_task(run_controller(controller), name="garbage collector")
        watching = asyncio.create_task(self._until_other(_identities(kinds), changed), name="garbage kinds")
        try:
            await asyncio.wait((collecting, watching), return_when=asyncio.FIRST_COMPLETED)
        finally:
            collecting.cancel()
            watching.cancel()
            results = await asyncio.gather(collecting, watching, return_exceptions=True)
            await informers.stop()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _until_other(self, known: set[tuple[str, str, str, bool]], changed: asyncio.Event) -> None:
        while _identities(self._kinds()) == known:
            changed.clear()
            await changed.wait()
            await asyncio.sleep(SETTLE_SECONDS)


def _identities(kinds: tuple[Resource, ...]) -> set[tuple[str, str, str, bool]]:
    """What the collector must know of kinds; a changed schema is nothing to it."""
    return {(kind.group, kind.plural, kind.version, kind.namespaced) for kind in kinds}

"""Follows CustomResourceDefinitions: accepts names, serves what is established, and clears up after a deletion.

Owned by `api.ApiServer`. One task follows the definitions; for each deleted one a task of its own removes the
instances, then the definition's finalizer. Definitions are objects of the store, so the kinds are there again after a
start, and every plane comes to the same answer. A kind is served before its condition says so, so that who waits for
`Established` finds it. Follows CR1 and CR2.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import structlog

from stead.kinds import register
from stead.kinds.foreign import CLEANUP, is_own_group, is_served, resources_of, stored_resource
from stead.kube import meta
from stead.kube.errors import ApiError
from stead.server.catalogue import Catalogue
from stead.server.definition_status import decide_status
from stead.server.local import LocalVerbs
from stead.server.registry import Object, Registry

log = structlog.get_logger(__name__)

#: between two looks at instances that their finalizers hold, and after a failure, seconds
WAIT_SECONDS = 0.2
FAILED_SECONDS = 1.0

_DEFINITION = register.CUSTOM_RESOURCE_DEFINITION


class Definitions:
    """See the module's prose. `load` before anything is served, `start` afterwards, `stop` at the end."""

    def __init__(self, registry: Registry, catalogue: Catalogue, verbs: LocalVerbs) -> None:
        self._registry = registry
        self._catalogue = catalogue
        self._verbs = verbs
        self._task: asyncio.Task[None] | None = None
        self._cleaning: dict[str, asyncio.Task[None]] = {}

    def load(self) -> None:
        """Serve what the store holds."""
        self._serve(self._foreign())

    def start(self) -> None:
        """Follow the definitions until `stop`."""
        self._task = asyncio.create_task(self._run(), name="definitions")

    async def stop(self) -> None:
        """End all tasks."""
        tasks = [task for task in (self._task, *self._cleaning.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _foreign(self) -> list[Object]:
        """Definitions of foreign groups, oldest first."""
        entries, _ = self._registry.entries(_DEFINITION)
        found = [self._registry.record_of(entry).obj for entry in sorted(entries, key=lambda e: e.create_revision)]
        return [definition for definition in found if not is_own_group(definition["spec"]["group"])]

    def _serve(self, definitions: list[Object]) -> None:
        """Make the catalogue true; watches of kinds that changed or went are ended, so that their clients look anew."""
        resources = [resource for d in definitions if is_served(d) for resource in resources_of(d)]
        for resource in self._catalogue.set_foreign(resources):
            self._registry.cache.end(self._registry.prefix(resource))

    async def _run(self) -> None:
        while True:
            subscription = self._registry.subscribe(_DEFINITION, "", self._registry.revision)
            try:
                while not subscription.ended:
                    subscription.take()
                    await self._settle()
                    await subscription.wait()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.warning("definitions not settled", error=repr(error), again_in=FAILED_SECONDS)
                await asyncio.sleep(FAILED_SECONDS)
            finally:
                self._registry.cache.unsubscribe(subscription)

    async def _settle(self) -> None:
        """Decide every status, serve, then write what changed."""
        now, decided = meta.now(), self._foreign()
        changed = []
        for at, definition in enumerate(decided):
            group = definition["spec"]["group"]
            others = [d for d in decided if d["spec"]["group"] == group and d is not definition]
            status = decide_status(definition, others, now)
            if status != definition.get("status"):
                decided[at] = {**definition, "status": status}
                changed.append(decided[at])
        self._serve(decided)
        for definition in changed:
            # A lost race brings another event, and with it another look.
            with contextlib.suppress(ApiError):
                await self._verbs.update(_DEFINITION, definition, "status")
        for definition in decided:
            self._clean_up(definition)

    def _clean_up(self, definition: Object) -> None:
        metadata = definition["metadata"]
        if not metadata.get("deletionTimestamp") or CLEANUP not in (metadata.get("finalizers") or ()):
            return
        uid = metadata["uid"]
        if uid not in self._cleaning:
            task = asyncio.create_task(self._clean(definition), name=f"clean up {metadata['name']}")
            self._cleaning[uid] = task
            task.add_done_callback(lambda _: self._cleaning.pop(uid, None))

    async def _clean(self, definition: Object) -> None:
        """Delete all instances, wait for those that finalizers hold, let the definition go."""
        resource, name = stored_resource(definition), definition["metadata"]["name"]
        while True:
            try:
                left = self._registry.peek_all(resource)
                for obj in left:
                    await self._delete(resource, obj)
                if not self._registry.peek_all(resource):
                    await self._release(name)
                    return
            except ApiError as error:
                log.warning("definition not cleaned up", definition=name, error=str(error), again_in=FAILED_SECONDS)
                await asyncio.sleep(FAILED_SECONDS)
            await asyncio.sleep(WAIT_SECONDS)

    async def _delete(self, resource: Any, obj: Object) -> None:
        metadata = obj["metadata"]
        if metadata.get("deletionTimestamp"):
            return
        with contextlib.suppress(ApiError):
            await self._verbs.delete(resource, metadata.get("namespace", ""), metadata["name"], {})

    async def _release(self, name: str) -> None:
        definition = self._registry.peek(_DEFINITION, "", name)
        if definition is None:
            return
        kept = [finalizer for finalizer in definition["metadata"].get("finalizers") or () if finalizer != CLEANUP]
        metadata = {"finalizers": kept or None, "resourceVersion": definition["metadata"]["resourceVersion"]}
        await self._verbs.patch(_DEFINITION, "", name, {"metadata": metadata}, "")

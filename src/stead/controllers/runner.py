"""How a controller runs: informers tell keys, a queue holds them, workers call `reconcile`, failures come back later.

Used by `controllers.start` for every controller. Each controller is one `Controller` value; there is nothing to
inherit. One key is never reconciled by two workers at once. Every key is looked at again every `resync_seconds`, so a
lost or dropped notice only delays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
import structlog

from stead.client.contract import Client, Object
from stead.client.informer import Informer, Informers, Key, key_of
from stead.client.queue import Backoff, QueueClosed, QueueHooks, WorkQueue
from stead.controllers.events import Recorder
from stead.kube.errors import ApiError

log = structlog.get_logger(__name__)

#: Looks at one object; returns seconds after which to look again without a notice, or None. Raises to be retried.
Reconcile = Callable[[Any], Awaitable[float | None]]
#: From a changed object to the keys that must be looked at.
Keys = Callable[[Object], Iterable[Any]]


class World(msgspec.Struct, frozen=True):
    """What every controller is given: the client, shared informers, the event recorder."""

    client: Client
    informers: Informers
    recorder: Recorder


class Source(msgspec.Struct, frozen=True):
    """An informer and which keys its changes concern. Both the old and the new object are asked."""

    informer: Informer
    keys: Keys


class Controller(msgspec.Struct):
    """One controller. `reconcile_seconds` bounds a pass."""

    name: str
    reconcile: Reconcile
    sources: tuple[Source, ...]
    workers: int = 2
    resync_seconds: float = 600.0
    reconcile_seconds: float = 120.0
    hooks: QueueHooks | None = None
    backoff: Backoff = Backoff(base=0.05, cap=60.0)


def own_key(obj: Object) -> list[Key]:
    """The key of the object itself."""
    return [key_of(obj)]


def owner_keys(kind: str) -> Keys:
    """Keys of the controller-owner of that kind, in the object's namespace."""

    def keys(obj: Object) -> list[Key]:
        metadata = obj["metadata"]
        return [
            Key(metadata.get("namespace", ""), reference["name"])
            for reference in metadata.get("ownerReferences") or ()
            if reference.get("controller") and reference["kind"] == kind
        ]

    return keys


async def run_controller(controller: Controller) -> None:
    """Run until cancelled. A failing `reconcile` is retried with back-off; only a bug in here raises."""
    queue: WorkQueue[Any] = WorkQueue(backoff=controller.backoff, hooks=controller.hooks)
    listeners = []
    for source in controller.sources:
        await source.informer.wait_synced()
    for source in controller.sources:
        listener = _listener(queue, source)
        listeners.append((source.informer, listener))
        source.informer.add_listener(listener)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(controller.workers):
                group.create_task(_work(controller, queue), name=f"{controller.name} worker")
            group.create_task(_resync(controller, queue), name=f"{controller.name} resync")
    finally:
        queue.close()
        for informer, listener in listeners:
            informer.remove_listener(listener)


def _listener(queue: WorkQueue[Any], source: Source) -> Callable[[Object | None, Object | None], None]:
    def note(old: Object | None, new: Object | None) -> None:
        for obj in (old, new):
            if obj is not None:
                for key in source.keys(obj):
                    queue.add(key)

    return note


async def _work(controller: Controller, queue: WorkQueue[Any]) -> None:
    while True:
        try:
            key = await queue.get()
        except QueueClosed:
            return
        try:
            async with asyncio.timeout(controller.reconcile_seconds):
                again = await controller.reconcile(key)
        except ApiError as error:
            delay = queue.add_rate_limited(key)
            level = log.debug if error.code == 409 and queue.failures(key) < 5 else log.warning
            level("reconcile refused", controller=controller.name, key=str(key), error=str(error), again_in=delay)
        except Exception as error:
            delay = queue.add_rate_limited(key)
            log.exception(
                "reconcile failed", controller=controller.name, key=str(key), error=repr(error), again_in=delay
            )
        else:
            queue.forget(key)
            if again is not None:
                queue.add_after(key, max(again, 0.01))
        finally:
            queue.done(key)


async def _resync(controller: Controller, queue: WorkQueue[Any]) -> None:
    while True:
        await asyncio.sleep(controller.resync_seconds)
        for source in controller.sources:
            for obj in source.informer.objects():
                for key in source.keys(obj):
                    queue.add(key)

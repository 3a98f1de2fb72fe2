"""The instance of one machine as last known, and every write to it: JSON patches tested against its resourceVersion.

Belongs to one `Machine` and is used from its task only (`offer` also by the informer, on the same loop). A write that
lost a race reads the object again and is made anew from what it says now. An object that has vanished, or bears
another uid, is told by `vanished`; nothing is written to it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from stead.agent import status
from stead.agent import vmi as reading
from stead.client.contract import Client
from stead.kinds import register
from stead.kube.errors import ApiError

log = structlog.get_logger(__name__)

Object = dict[str, Any]
#: the complete new status of an object as it stands
Making = Callable[[Object], Object]

WRITE_SECONDS = 10.0
#: until a status that the API refuses is offered again
REFUSED_SECONDS = 10.0
ATTEMPTS = 3


class Instance:
    """See the module's prose. `object` is never changed, only replaced."""

    def __init__(self, client: Client, vmi: Object) -> None:
        self._client = client
        self.object = vmi
        self.uid = reading.uid(vmi)
        self.vanished = False
        #: loop time before which another try would be refused again
        self.retry_at = 0.0

    def offer(self, vmi: Object) -> bool:
        """A newer version, as seen by a watch. Returns whether the spec changed or its end was asked for."""
        if reading.is_older(vmi, self.object):
            return False
        changed = reading.spec(vmi) != reading.spec(self.object) or reading.is_deleting(vmi)
        self.object = vmi
        return changed

    async def publish(self, make: Making) -> None:
        """Write the status if it differs; on a conflict read again and try once more. Raises ApiError, OSError."""
        for _ in range(ATTEMPTS):
            patch = status.patch_from(self.object, make(self.object))
            if patch is None or self.vanished or not await self._patch(patch):
                return

    async def let_go(self, make: Making | None) -> bool:
        """Write the last status, then take our finalizer away. Returns whether the object needs us no more; False
        means that it changed meanwhile and the caller tries again.

        Two writes, since an API server shows watchers of a deletion the object as it was stored before: the phase of
        a write that also removes the last finalizer would be seen by nobody.
        """
        if make is not None:
            await self.publish(make)
        finalizers = list(self.object["metadata"].get("finalizers") or [])
        kept = [finalizer for finalizer in finalizers if finalizer != reading.FINALIZER]
        if self.vanished or len(kept) == len(finalizers):
            return True
        test = {"op": "test", "path": "/metadata/resourceVersion", "value": reading.resource_version(self.object)}
        return not await self._patch([test, {"op": "replace", "path": "/metadata/finalizers", "value": kept}])

    async def _patch(self, patch: list[Object]) -> bool:
        """Send one patch; True when the object had changed meanwhile and has been read again."""
        namespace, name = reading.key(self.object)
        made_for = reading.resource_version(self.object)  # a watch may bring a newer one meanwhile
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                self.object = await self._client.patch(register.VIRTUAL_MACHINE_INSTANCE, namespace, name, patch)
            return False
        except ApiError as error:
            if error.code == 404:
                self.vanished = True
                return False
            if error.code not in (409, 422):
                raise
            return await self._read_again(error, made_for)

    async def _read_again(self, error: ApiError, made_for: str) -> bool:
        namespace, name = reading.key(self.object)
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                fresh = await self._client.get(register.VIRTUAL_MACHINE_INSTANCE, namespace, name)
        except ApiError as missing:
            if missing.code not in (403, 404):  # 403: it is bound to another host by now
                raise
            self.vanished = True
            return False
        if reading.uid(fresh) != self.uid:
            self.vanished = True
            return False
        if reading.resource_version(fresh) == made_for:
            log.error("the API refuses a machine's status", machine=f"{namespace}/{name}", error=error.message)
            self.retry_at = asyncio.get_running_loop().time() + REFUSED_SECONDS
            return False
        self.object = fresh
        return True

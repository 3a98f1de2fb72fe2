"""The volumes of one host: makes those whose claim was given to it, fills, grows and removes them.

Composed by `run`, started beside the machines. A claim is ours when `volume.kubernetes.io/selected-node` names this
host; a PersistentVolume when its handle names one of our pools. Written on the claim: `stead.io/volume-handle`,
`stead.io/transfer` and, at the end, the image's digest and suggested labels; on the PersistentVolume: our finalizer
taken off. One task per claim, so there is one writer per volume; at most `parallel_transfers` of them move data at a
time. Everything can be begun again: what the pool holds under the claim's uid is whole, anything else is started over.
Back-off and sentences follow CDI and the kubelet.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from stead.agent import volume_claims as claims
from stead.agent.volume_claims import Transfer
from stead.agent.volume_sources import SourceReader
from stead.client.contract import Client
from stead.client.informer import Informers, Key, key_of
from stead.client.queue import Backoff
from stead.images.child import TransferFailed
from stead.images.jobs import UNCHANGED
from stead.images.sources import Policy
from stead.images.transfers import Source, discard_useless, fill
from stead.kinds import register
from stead.kube.errors import ApiError
from stead.storage.pools import Pool, PoolError, Volume, VolumeSpec

log = structlog.get_logger(__name__)

Object = dict[str, Any]

VOLUME_FINALIZER = "stead.io/volume"
#: sizes of claims are rounded to so much
_ROUNDING_BYTES = 1 << 20
_REPORT_SECONDS = 2.0
_WRITE_SECONDS = 30.0
#: how long a volume whose task failed unexpectedly is left alone
_REST_SECONDS = 5.0
_SYNC_SECONDS = 86400.0
_FAMILY = {"upload": "Upload", "pvc": "Clone", "snapshot": "Clone"}


class VolumeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Plain values from `run`. `policy`: which addresses imports may reach; `insecure_registries`: hosts used without
    TLS verification, besides those that CDIConfig lists.
    """

    host_name: str
    policy: Policy = Policy()
    insecure_registries: tuple[str, ...] = ()
    parallel_transfers: int = 2
    backoff: Backoff = Backoff(base=10.0, cap=300.0, jitter=0.0)


class Hooks(msgspec.Struct, frozen=True):
    """What volumes need of machines: is a disk path in use, and tell the machine that has it of its new size."""

    is_in_use: Callable[[str], bool] = lambda _path: False
    resized: Callable[[str, int], None] = lambda _path, _size: None


class Volumes:
    """See the module's prose. `pools` by pool name."""

    def __init__(
        self, client: Client, pools: Mapping[str, Pool], settings: VolumeSettings, hooks: Hooks | None = None
    ) -> None:
        self._client = client
        self._pools = {pool.uid: pool for pool in pools.values()}
        self._by_name = dict(pools)
        self._settings = settings
        self._hooks = hooks or Hooks()
        self._sources = SourceReader(
            client, settings.policy, settings.insecure_registries, pools.values(), self._hooks.is_in_use
        )
        self._informers = Informers(client)
        self._claims = self._informers.of(register.PERSISTENT_VOLUME_CLAIM)
        self._volumes = self._informers.of(register.PERSISTENT_VOLUME)
        self._slots = asyncio.Semaphore(settings.parallel_transfers)
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._again: set[Key] = set()
        #: claims whose task failed unexpectedly, until it is tried again
        self._resting: set[Key] = set()
        self._chores: set[asyncio.Task[None]] = set()
        self._uploading: set[str] = set()
        self._stopped = False

    # life --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled; then every transfer is ended and what it had begun is removed."""
        for pool in self._pools.values():
            await asyncio.to_thread(discard_useless, pool)
        self._chore(self._discard_strangers())
        self._claims.add_listener(self._claim_changed)
        self._volumes.add_listener(self._volume_changed)
        self._informers.start()
        try:
            await asyncio.Event().wait()
        finally:
            self._stopped = True
            await self._informers.stop()
            tasks = [*self._tasks.values(), *self._chores]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _discard_strangers(self) -> None:
        """Remove what was begun for claims that went while no agent ran."""
        await self._claims.wait_synced(timeout_seconds=_SYNC_SECONDS)
        known = {str(claim["metadata"]["uid"]) for claim in self._claims.objects()}
        for pool in self._pools.values():
            await asyncio.to_thread(discard_useless, pool, known)

    def _claim_changed(self, old: Object | None, new: Object | None) -> None:
        claim = new or old
        if claim is None or claims.node_of(claim) != self._settings.host_name:
            return
        key = key_of(claim)
        if new is None or (new["metadata"].get("deletionTimestamp") and not claims.is_protected(new)):
            if key in self._tasks:
                self._tasks[key].cancel()
            if new is None:
                self._chore(self._forget(claim))
            return
        if key in self._tasks or key in self._resting:
            self._again.add(key)
        else:
            self._start(key)

    def _start(self, key: Key) -> None:
        task = asyncio.create_task(self._keep(key), name=f"volume {key}")
        self._tasks[key] = task

        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.pop(key, None)
            if not done.cancelled() and done.exception():
                log.error("volume task failed", claim=str(key), exc_info=done.exception())
                # What failed may have written to the claim: its own events must not start it at once.
                self._resting.add(key)
                asyncio.get_running_loop().call_later(_REST_SECONDS, self._wake, key)
            elif key in self._again:
                self._wake(key)

        task.add_done_callback(ended)

    def _wake(self, key: Key) -> None:
        self._again.discard(key)
        self._resting.discard(key)
        if not self._stopped and key not in self._tasks and self._claims.get(key.namespace, key.name):
            self._start(key)

    def _chore(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    # one claim ---------------------------------------------------------------------------------------------------

    async def _keep(self, key: Key) -> None:
        """Bring one claim's volume to what the claim says now; long when there is something to transfer."""
        claim = self._claims.get(key.namespace, key.name)
        if claim is None:
            return
        pool = await self._pool_for(claim)
        if pool is None:
            return
        uid, state = claim["metadata"]["uid"], claims.transfer_of(claim)
        try:
            volume = await asyncio.to_thread(pool.get, uid)
        except PoolError as error:
            if error.reason != "NotFound":
                raise
            if state.phase == "Failed":
                return
            if state.phase == "Succeeded":
                lost = msgspec.structs.replace(state, phase="Failed", reason="ClaimLost", message=str(error))
                await self._write(claim, pool, lost)
                return
            await self._fill(claim, pool, state)
            return
        wanted = claims.requested_bytes(claim)
        if wanted > volume.size_bytes and await self._may_grow(claim, volume, wanted):
            volume = await asyncio.to_thread(pool.resize, uid, wanted)
            self._hooks.resized(str(volume.path), volume.size_bytes)
        if state.phase != "Succeeded" or state.virtual_size != volume.size_bytes:
            await self._write(
                claim, pool, Transfer("Succeeded", "100.0%", state.restarts, virtual_size=volume.size_bytes)
            )

    async def _may_grow(self, claim: Object, volume: Volume, wanted: int) -> bool:
        """Whether the disk is to become larger; an adopted file is left alone where its claim is only rounded."""
        if volume.adopted and wanted - volume.size_bytes < _ROUNDING_BYTES:
            return False
        if volume.format != "raw":
            text = f"a volume that is kept as {volume.format} cannot grow yet"
            await self._event(claim, "Warning", "VolumeResizeFailed", text)
            return False
        return True

    async def _pool_for(self, claim: Object) -> Pool | None:
        """The pool that the claim's class names; None (with an event) when this host has none of that name."""
        name = "default"
        class_name = claim["spec"].get("storageClassName")
        if class_name:
            try:
                found = await self._client.get(register.STORAGE_CLASS, None, class_name)
            except ApiError as error:
                if error.code != 404:
                    raise
                found = {}
            if found and found.get("provisioner") != "stead.io":
                return None
            name = (found.get("parameters") or {}).get("pool") or "default"
        if name not in self._by_name:
            await self._event(
                claim, "Warning", "ProvisioningFailed", f"host {self._settings.host_name} has no pool {name}"
            )
        return self._by_name.get(name)

    async def _fill(self, claim: Object, pool: Pool, state: Transfer) -> None:
        """Transfer until it succeeds or fails for good, with back-off as the kubelet's."""
        source = claims.source_of(claim)
        kind = str(source.get("kind", "blank")) if source else "blank"
        if kind == "upload":
            if state.phase != "Pending" or claims.handle_of(claim) != pool.handle(claim["metadata"]["uid"]):
                await self._write(claim, pool, msgspec.structs.replace(state, phase="Pending"))
            return
        restarts = state.restarts
        if state.reason:  # the back-off goes on after a restart of the agent
            await asyncio.sleep(self._settings.backoff.delay(max(restarts, 1)))
        if source and state.phase != "Pending":
            await self._write(claim, pool, Transfer("Pending", restarts=restarts))
        while True:
            try:
                async with self._slots:
                    await self._transfer(claim, pool, kind, Transfer("Running", restarts=restarts))
                return
            except TransferFailed as failure:
                restarts += 1
                phase = "Failed" if failure.fatal else "Pending"
                failed = Transfer(phase, "N/A", restarts, failure.reason, str(failure))
                await self._write(claim, pool, failed)
                if failure.reason != UNCHANGED:
                    log.warning("transfer failed", claim=str(key_of(claim)), reason=failure.reason, error=str(failure))
                    await self._event(claim, "Warning", f"{_FAMILY.get(kind, 'Import')}Failed", str(failure))
                if failure.fatal:
                    return
            await asyncio.sleep(self._settings.backoff.delay(restarts))

    async def _transfer(self, claim: Object, pool: Pool, kind: str, state: Transfer) -> None:
        if kind != "blank":
            await self._write(claim, pool, state)
        await self._carry_out(claim, pool, await self._sources.read(claim), state)

    async def _carry_out(
        self, claim: Object, pool: Pool, source: Source, state: Transfer, body: AsyncIterator[bytes] | None = None
    ) -> None:
        metadata = claim["metadata"]
        named = claims.annotations_of(claim)
        spec = VolumeSpec(
            uid=metadata["uid"], size_bytes=claims.requested_bytes(claim), namespace=metadata["namespace"],
            name=metadata["name"], file=named.get(claims.FILE, ""), format=named.get(claims.FORMAT) or "raw",
        )  # fmt: skip
        progress = _Progress()
        writer = asyncio.create_task(self._write_progress(claim, pool, state, progress))
        try:
            filled = await fill(pool, spec, source, progress.set, body)
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
        done = Transfer("Succeeded", "100.0%", state.restarts, virtual_size=filled.volume.size_bytes)
        await self._write(claim, pool, done, claims.suggested_labels(filled.labels), filled.digest)
        if source.kind != "blank":
            family = _FAMILY.get(source.kind, "Import")
            await self._event(claim, "Normal", f"{family}Succeeded", f"{family} Successful")

    async def _write_progress(self, claim: Object, pool: Pool, state: Transfer, progress: _Progress) -> None:
        told = ""
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            if progress.text != told:
                told = progress.text
                with contextlib.suppress(ApiError):
                    await self._write(claim, pool, msgspec.structs.replace(state, progress=told))

    # uploads -----------------------------------------------------------------------------------------------------

    async def upload(self, namespace: str, claim: str, format: str, body: Any) -> Object:
        """Fill an upload claim with a body (an aiohttp StreamReader, or any asynchronous iterator of bytes).

        ApiError: 404 no such claim here, 409 filled already, 503 an upload is under way, 400 the data is refused.
        """
        found = self._claims.get(namespace, claim)
        source = claims.source_of(found) if found else None
        if found is None or claims.node_of(found) != self._settings.host_name or (source or {}).get("kind") != "upload":
            raise ApiError("NotFound", f"PersistentVolumeClaim {namespace}/{claim} awaits no upload on this host")
        uid = str(found["metadata"]["uid"])
        pool = await self._pool_for(found)
        if pool is None:
            raise ApiError("NotFound", f"the pool of PersistentVolumeClaim {namespace}/{claim} is not on this host")
        if await asyncio.to_thread(pool.disk_path(uid).exists):
            raise ApiError("Conflict", f"PersistentVolumeClaim {namespace}/{claim} has been filled already")
        if uid in self._uploading:
            raise ApiError("ServiceUnavailable", f"an upload to PersistentVolumeClaim {namespace}/{claim} is under way")
        self._uploading.add(uid)
        state = claims.transfer_of(found)
        try:
            running = Transfer("Running", restarts=state.restarts)
            await self._write(found, pool, running)
            declared = "" if format in ("", "raw") else format
            await self._carry_out(found, pool, Source(kind="upload", format=declared), running, _pieces(body))
        except TransferFailed as failure:
            failed = Transfer("Pending", "N/A", state.restarts + 1, failure.reason, str(failure))
            await self._write(found, pool, failed)
            await self._event(found, "Warning", "UploadFailed", str(failure))
            raise ApiError("BadRequest", str(failure)) from failure
        except asyncio.CancelledError:
            broken = Transfer(
                "Pending", "N/A", state.restarts + 1, "Error", "Unable to process data: the upload broke off"
            )
            self._chore(self._write(found, pool, broken))
            raise
        finally:
            self._uploading.discard(uid)
        return {"status": "Success"}

    # removal -----------------------------------------------------------------------------------------------------

    def _volume_changed(self, old: Object | None, new: Object | None) -> None:
        metadata = new["metadata"] if new is not None else {}
        leaving = metadata.get("deletionTimestamp") and VOLUME_FINALIZER in (metadata.get("finalizers") or [])
        if new is not None and leaving:
            self._chore(self._release(new))

    async def _release(self, volume: Object) -> None:
        """A PersistentVolume is to go: remove its disk (policy Delete), then our finalizer."""
        csi = volume["spec"].get("csi") or {}
        pool_uid, _, volume_uid = str(csi.get("volumeHandle", "")).partition("/")
        pool = self._pools.get(pool_uid)
        if csi.get("driver") != "stead.io" or pool is None:
            return
        for attempt in range(1, 8):
            try:
                if volume["spec"].get("persistentVolumeReclaimPolicy") != "Retain":
                    await asyncio.to_thread(pool.delete, volume_uid)
                await self._drop_finalizer(volume["metadata"]["name"])
                return
            except (ApiError, PoolError) as error:
                log.warning("volume not released yet", volume=volume["metadata"]["name"], error=str(error))
                await asyncio.sleep(min(2.0**attempt, 60))

    async def _drop_finalizer(self, name: str) -> None:
        try:
            volume = await self._client.get(register.PERSISTENT_VOLUME, None, name)
            finalizers = volume["metadata"].get("finalizers") or []
            if VOLUME_FINALIZER not in finalizers:
                return
            steps = [
                {"op": "test", "path": "/metadata/resourceVersion", "value": volume["metadata"]["resourceVersion"]},
                {"op": "remove", "path": f"/metadata/finalizers/{finalizers.index(VOLUME_FINALIZER)}"},
            ]
            await self._client.patch(register.PERSISTENT_VOLUME, None, name, steps)
        except ApiError as error:
            if error.code != 404:
                raise

    async def _forget(self, claim: Object) -> None:
        """A claim is gone: remove what was begun for it, and its volume too if no PersistentVolume stands for it."""
        uid = str(claim["metadata"]["uid"])
        task = self._tasks.get(key_of(claim))
        if task:
            await asyncio.gather(task, return_exceptions=True)
        for pool in self._pools.values():
            await asyncio.to_thread(pool.discard, uid)
        if claim["spec"].get("volumeName"):
            return
        await asyncio.sleep(5)  # a PersistentVolume may be on its way
        for pool in self._pools.values():
            handle = pool.handle(uid)
            known = any((v["spec"].get("csi") or {}).get("volumeHandle") == handle for v in self._volumes.objects())
            if not known and self._volumes.synced:
                await asyncio.to_thread(pool.delete, uid)

    # writing -----------------------------------------------------------------------------------------------------

    async def _write(
        self, claim: Object, pool: Pool, state: Transfer, labels: Mapping[str, str] | None = None, digest: str = ""
    ) -> None:
        """Our two annotations (and on success what the image suggests); a claim that is gone is fine."""
        metadata = claim["metadata"]
        annotations = {
            claims.HANDLE: pool.handle(metadata["uid"]),
            claims.TRANSFER: msgspec.json.encode(state).decode(),
        }
        if digest:
            annotations["stead.io/image-digest"] = digest
        patch: Object = {"metadata": {"uid": metadata["uid"], "annotations": annotations}}
        if labels:
            patch["metadata"]["labels"] = {k: v for k, v in labels.items() if k not in (metadata.get("labels") or {})}
        try:
            async with asyncio.timeout(_WRITE_SECONDS):
                await self._client.patch(
                    register.PERSISTENT_VOLUME_CLAIM, metadata["namespace"], metadata["name"], patch
                )
        except ApiError as error:
            if error.code not in (404, 409, 422):
                raise
            log.info("claim not written", claim=metadata["name"], error=error.message)

    async def _event(self, claim: Object, kind: str, reason: str, message: str) -> None:
        """Best effort."""
        metadata, now = claim["metadata"], datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {
            "apiVersion": "v1", "kind": "Event", "type": kind, "reason": reason, "message": message[:1024], "count": 1,
            "metadata": {"namespace": metadata["namespace"], "name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}"},
            "involvedObject": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": metadata["namespace"],
                               "name": metadata["name"], "uid": metadata["uid"]},
            "firstTimestamp": now, "lastTimestamp": now,
            "source": {"component": "stead-agent", "host": self._settings.host_name},
            "reportingComponent": "stead-agent", "reportingInstance": self._settings.host_name,
        }  # fmt: skip
        with contextlib.suppress(ApiError, TimeoutError):
            async with asyncio.timeout(_WRITE_SECONDS):
                await self._client.create(register.EVENT, event)


class _Progress:
    """The latest progress, as CDI writes it."""

    def __init__(self) -> None:
        self.text = "N/A"
        self.at = time.monotonic()

    def set(self, percent: float | None) -> None:
        """Note percent done; None while it is not known."""
        self.text = "N/A" if percent is None else f"{percent:.2f}%"


def _pieces(body: Any) -> AsyncIterator[bytes]:
    iter_chunked = getattr(body, "iter_chunked", None)
    pieces: AsyncIterator[bytes] = iter_chunked(1 << 20) if iter_chunked else body
    return pieces

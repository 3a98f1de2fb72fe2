"""Where a claim's content comes from, with everything it refers to read: Secrets, ConfigMaps, other claims, CDIConfig.

Used by `volumes.py` just before each attempt, so that what was mended meanwhile counts. Reads only. What is missing is
a `TransferFailed` that names it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from stead.agent import volume_claims as claims
from stead.client.contract import Client
from stead.images.child import TransferFailed
from stead.images.sources import Access, Policy
from stead.images.transfers import Source
from stead.kinds import register
from stead.kube.errors import ApiError
from stead.storage.pools import Pool, PoolError, Volume

Object = dict[str, Any]


class SourceReader:
    """See the module's prose. `is_in_use` says whether a machine has the disk at a path; `pools` are the host's."""

    def __init__(
        self,
        client: Client,
        policy: Policy,
        insecure_registries: Iterable[str],
        pools: Iterable[Pool],
        is_in_use: Callable[[str], bool],
    ) -> None:
        self._client, self._policy, self._is_in_use = client, policy, is_in_use
        self._insecure, self._pools = tuple(insecure_registries), tuple(pools)

    async def read(self, claim: Object) -> Source:
        """The claim's source, concrete."""
        wanted = claims.source_of(claim) or {"kind": "blank"}
        namespace, kind = claim["metadata"]["namespace"], str(wanted.get("kind"))
        if kind in ("blank", "existing"):
            return Source(kind=kind)
        if kind == "pvc":
            return Source(kind="pvc", volume=await self._clone_source(wanted))
        if kind == "snapshot":
            return Source(kind="pvc", volume=await self._snapshot(wanted))
        if kind not in ("http", "registry"):
            raise TransferFailed("Error", f"source {kind} is not one that this host can import from", fatal=True)
        access = Access(
            headers=await self._headers(namespace, wanted),
            ca_pem=await self._ca(namespace, str(wanted.get("certConfigMap") or "")),
            verify=not wanted.get("insecureSkipVerify"),
            policy=self._policy,
        )
        if secret := str(wanted.get("secretRef") or ""):
            data = claims.secret_data(await self._get(register.SECRET, namespace, secret))
            access = msgspec.structs.replace(
                access, user=data.get("accessKeyId", ""), password=data.get("secretKey", "")
            )
        url = str(wanted.get("url", ""))
        return Source(
            kind=kind, url=url, access=access, checksum=str(wanted.get("checksum") or ""),
            insecure=kind == "registry" and await self._is_insecure(url),
            known_digest=claims.annotations_of(claim).get(claims.KNOWN_DIGEST, ""),
        )  # fmt: skip

    async def _clone_source(self, wanted: Object) -> Volume:
        namespace, name = str(wanted.get("namespace", "")), str(wanted.get("name", ""))
        source = await self._get(register.PERSISTENT_VOLUME_CLAIM, namespace, name)
        if claims.source_of(source) and claims.transfer_of(source).phase != "Succeeded":
            raise TransferFailed("CloneSourceNotReady", f"source PVC {namespace}/{name} is still being filled")
        volume = await asyncio.to_thread(self._find, str(source["metadata"]["uid"]))
        if volume is None:
            raise TransferFailed("CloneSourceMissing", f"source PVC {namespace}/{name}: no pool of this host has it")
        if self._is_in_use(str(volume.path)):
            raise TransferFailed("CloneSourceInUse", f"source PVC {namespace}/{name} is in use by a machine")
        return volume

    async def _snapshot(self, wanted: Object) -> Volume:
        namespace, name = str(wanted.get("namespace", "")), str(wanted.get("name", ""))
        source = await self._get(register.VOLUME_SNAPSHOT, namespace, name)
        if not (source.get("status") or {}).get("readyToUse"):
            raise TransferFailed("CloneSourceNotReady", f"source snapshot {namespace}/{name} is not ready to use")
        volume = await asyncio.to_thread(self._find, str(source["metadata"]["uid"]))
        if volume is None:
            raise TransferFailed(
                "CloneSourceMissing", f"source snapshot {namespace}/{name}: no pool of this host has it"
            )
        return volume

    def _find(self, uid: str) -> Volume | None:
        """A volume in whichever pool of this host has it."""
        for pool in self._pools:
            with contextlib.suppress(PoolError):
                return pool.get(uid)
        return None

    async def _headers(self, namespace: str, wanted: Object) -> tuple[str, ...]:
        lines = [str(line) for line in wanted.get("extraHeaders") or []]
        for name in wanted.get("secretExtraHeaders") or []:
            lines += claims.secret_data(await self._get(register.SECRET, namespace, str(name))).values()
        return tuple(line.strip() for line in lines)

    async def _ca(self, namespace: str, name: str) -> str:
        if not name:
            return ""
        found = await self._get(register.CONFIG_MAP, namespace, name)
        return "\n".join(str(text) for text in (found.get("data") or {}).values())

    async def _is_insecure(self, url: str) -> bool:
        """Whether the administrator listed the registry's host, in the settings or in CDIConfig."""
        host = url.removeprefix("docker://").partition("/")[0]
        known = list(self._insecure)
        with contextlib.suppress(ApiError):
            config = await self._client.get(register.CDI_CONFIG, None, "config")
            known += (config.get("spec") or {}).get("insecureRegistries") or []
        return host in known

    async def _get(self, resource: Any, namespace: str, name: str) -> Object:
        try:
            return await self._client.get(resource, namespace, name)
        except ApiError as error:
            raise TransferFailed("Error", f"{resource.kind} {namespace}/{name}: {error.message}") from error

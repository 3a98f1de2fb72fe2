"""Opens the repositories that Backups name: the object, its Secrets, the place. Used by `backups.py`.

A folder must lie below one that an administrator has listed (`backup_roots`), whoever may make objects: the agent is
root. The first backup makes the repository. A repository's folder is made for root alone.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stead.client.contract import Client
from stead.images.sources import Policy, SourceError, resolve
from stead.kinds import register
from stead.kube.errors import ApiError
from stead.storage.backup.keys import BackupError, secret_from_text
from stead.storage.backup.repository import Repository
from stead.storage.backup.s3 import Bucket, BucketPlace
from stead.storage.backup.store import Cached, Directory, Store

Object = dict[str, Any]

NODE_LABEL = "stead.io/host"
KEY = "key"


class Places:
    """See the module's prose."""

    def __init__(self, client: Client, roots: tuple[Path, ...], cache: Path, policy: Policy = Policy()) -> None:
        self._client, self._roots, self._cache, self._policy = client, roots, cache, policy

    async def open(self, namespace: str, name: str) -> Repository:
        """The repository of that name. BackupError, ApiError."""
        found = await self._get(register.BACKUP_REPOSITORY, namespace, name)
        spec = found["spec"]
        secret = await self._secret(namespace, str(spec["keySecretName"]))
        if KEY not in secret:
            raise BackupError("Invalid", f"Secret {spec['keySecretName']} has no entry {KEY}")
        store = await self._store(namespace, name, spec)
        return await asyncio.to_thread(_opened, Cached(store, self._cache / found["metadata"]["uid"]), secret[KEY])

    async def _store(self, namespace: str, name: str, spec: Object) -> Store:
        if spec.get("directory"):
            return Directory(self._below_roots(name, str(spec["directory"]["path"])))
        bucket = spec["s3"]
        keys = await self._secret(namespace, str(bucket["credentialsSecretName"]))
        return Bucket(
            BucketPlace(
                endpoint=bucket["endpoint"], bucket=bucket["bucket"], prefix=bucket.get("prefix") or "",
                region=bucket.get("region") or "us-east-1", access_key=keys.get("accessKeyId", ""),
                secret_key=keys.get("secretKey", ""), resolve=self._resolve,
            )
        )  # fmt: skip

    def _resolve(self, host: str, port: int) -> str:
        """Blocking. An address that importers may reach, too: never Stead's own."""
        try:
            return resolve(host, port, self._policy)[0]
        except SourceError as error:
            raise OSError(str(error)) from error

    def _below_roots(self, name: str, path: str) -> Path:
        """The folder, with no symbolic link on the way from the root."""
        for root in self._roots:
            folder = Path(path)
            if folder != root and folder.is_relative_to(root) and ".." not in folder.parts:
                for step in (folder, *folder.parents):
                    if step == root:
                        return folder
                    if step.is_symlink():
                        break
        listed = ", ".join(str(root) for root in self._roots) or "none"
        raise BackupError(
            "Invalid", f"BackupRepository {name}: spec.directory.path {path} is not below a folder of the setting"
            f" backup_roots ({listed})"
        )  # fmt: skip

    async def _secret(self, namespace: str, name: str) -> dict[str, str]:
        data = (await self._get(register.SECRET, namespace, name)).get("data") or {}
        try:
            return {key: base64.b64decode(value, validate=True).decode() for key, value in data.items()}
        except (binascii.Error, UnicodeDecodeError, ValueError) as error:
            raise BackupError("Invalid", f"Secret {name} holds something else than text") from error

    async def _get(self, resource: Any, namespace: str, name: str) -> Object:
        try:
            return await self._client.get(resource, namespace, name)
        except ApiError as error:
            if error.code in (403, 404):
                raise BackupError(
                    "NotFound", f"{resource.kind} {name} does not exist, or is not for this host"
                ) from error
            raise


def _opened(store: Store, key: str) -> Repository:
    """Blocking."""
    secret = secret_from_text(key)
    try:
        return Repository.open(store, secret)
    except BackupError as error:
        if error.reason != "NotFound":
            raise
    return Repository.create(store, secret)


def manifests_of(backup: Object) -> tuple[Object, ...]:
    """The machine's manifests, as the controller has written them."""
    try:
        found = json.loads((backup.get("status") or {}).get("manifests") or "[]")
    except ValueError:
        return ()
    return tuple(item for item in found if isinstance(item, dict)) if isinstance(found, list) else ()


def text_now() -> str:
    """RFC 3339, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

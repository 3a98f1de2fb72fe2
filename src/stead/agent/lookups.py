"""Objects that a machine refers to, fetched on demand: claims, volumes, Secrets, ConfigMaps, network definitions.

Nothing is cached: a start reads the present truth, and the agent is allowed only what its own machines refer to. What
is not there raises `NotReady` with a sentence that names it; failures of the API pass through as ApiError and are
retried.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from stead.agent.materials import RegistryAccess
from stead.agent.prepared import NotReady
from stead.client.contract import Client
from stead.kinds import register
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError

Object = dict[str, Any]

DRIVER = "stead.io"
#: ConfigMap in each namespace with the API's certificate authority
ROOT_CA = "kube-root-ca.crt"


class Lookups:
    """Reads through one client. Safe for concurrent use."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def _get(self, resource: Resource, namespace: str | None, name: str, reason: str) -> Object:
        try:
            return await self._client.get(resource, namespace, name)
        except ApiError as error:
            if error.code == 404:
                raise NotReady(reason, f"{resource.kind} {name} does not exist") from error
            if error.code == 403:
                raise NotReady(
                    reason, f"{resource.kind} {name} may not be read by this host: {error.message}"
                ) from error
            raise

    async def secret(self, namespace: str, name: str, *, optional: bool = False) -> Object:
        """A Secret; an empty one when it is optional and not there."""
        return await self._optional(register.SECRET, namespace, name, optional)

    async def config_map(self, namespace: str, name: str, *, optional: bool = False) -> Object:
        """A ConfigMap; an empty one when it is optional and not there."""
        return await self._optional(register.CONFIG_MAP, namespace, name, optional)

    async def _optional(self, resource: Resource, namespace: str, name: str, optional: bool) -> Object:
        try:
            return await self._get(resource, namespace, name, "FailedMount")
        except NotReady:
            if optional:
                return {}
            raise

    async def claim(self, namespace: str, name: str) -> Object:
        """A PersistentVolumeClaim that is bound."""
        pvc = await self._get(register.PERSISTENT_VOLUME_CLAIM, namespace, name, "FailedPvcNotFound")
        if (pvc.get("status") or {}).get("phase") != "Bound" or not pvc["spec"].get("volumeName"):
            raise NotReady("PvcNotBound", f"PersistentVolumeClaim {name} is not bound yet", 2)
        return pvc

    async def volume_handle(self, pvc: Object) -> str:
        """`<pool-uid>/<volume-uid>` of a bound claim."""
        name = str(pvc["spec"]["volumeName"])
        volume = await self._get(register.PERSISTENT_VOLUME, None, name, "FailedMount")
        csi = (volume.get("spec") or {}).get("csi") or {}
        if csi.get("driver") != DRIVER:
            raise NotReady(
                "FailedMount", f"PersistentVolume {name} is not one of Stead's (csi driver {csi.get('driver')})", 60
            )
        return str(csi.get("volumeHandle", ""))

    async def registry_access(self, namespace: str, pull_secret: str) -> RegistryAccess:
        """Credentials of an image pull Secret: CDI's accessKeyId/secretKey, or the first entry of a docker config.

        A private CA of the registry may stand beside them as `ca.crt`.
        """
        if not pull_secret:
            return RegistryAccess()
        data = (await self.secret(namespace, pull_secret)).get("data") or {}
        authority = _plain(data.get("ca.crt", ""))
        if "accessKeyId" in data:
            user, password = _plain(data["accessKeyId"]), _plain(data.get("secretKey", ""))
            return RegistryAccess(username=user, password=password, ca=authority)
        config = data.get(".dockerconfigjson")
        if not config and authority:
            return RegistryAccess(ca=authority)
        if not config:
            raise NotReady("FailedMount", f"Secret {pull_secret} holds no registry credentials", 60)
        entries = list((json.loads(_plain(config)).get("auths") or {}).values())
        entry = entries[0] if entries else {}
        if entry.get("auth"):
            user, _, password = _plain(entry["auth"]).partition(":")
            return RegistryAccess(username=user, password=password, ca=authority)
        user, password = str(entry.get("username", "")), str(entry.get("password", ""))
        return RegistryAccess(username=user, password=password, ca=authority)

    async def service_account_files(self, namespace: str, name: str) -> dict[str, bytes]:
        """`token` (asked for this hour), `namespace` and `ca.crt` of a ServiceAccount, as a pod would find them."""
        request: Object = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"expirationSeconds": 3600},
        }
        try:
            answer = await self._client.create(register.TOKEN_REQUEST, request)
        except ApiError as error:
            raise NotReady("FailedMount", f"no token for ServiceAccount {name}: {error.message}", 30) from error
        token = str((answer.get("status") or {}).get("token", ""))
        files = {"token": token.encode(), "namespace": namespace.encode()}
        authority = (await self.config_map(namespace, ROOT_CA, optional=True)).get("data") or {}
        return files | {name: text.encode() for name, text in authority.items() if name == "ca.crt"}

    async def network_definition(self, namespace: str, name: str) -> Object:
        """Parsed `spec.config` of a NetworkAttachmentDefinition; `name` may be `namespace/name`."""
        space, _, short = name.rpartition("/")
        definition = await self._get(
            register.NETWORK_ATTACHMENT_DEFINITION, space or namespace, short, "NetworkNotFound"
        )
        text = str((definition.get("spec") or {}).get("config") or "")
        try:
            config = json.loads(text)
        except ValueError as error:
            raise NotReady(
                "NetworkInvalid", f"NetworkAttachmentDefinition {name}: its config is not JSON", 30
            ) from error
        if not isinstance(config, dict):
            raise NotReady("NetworkInvalid", f"NetworkAttachmentDefinition {name}: its config is not an object", 30)
        return config


def _plain(encoded: str) -> str:
    return base64.b64decode(encoded).decode()

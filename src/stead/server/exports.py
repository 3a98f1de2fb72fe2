"""Downloads of a VirtualMachineExport: disks as raw or gzip streams, and manifests to apply elsewhere.

Called by `app` before its own authentication, since the caller shows the export's token instead (header or query
parameter `x-kubevirt-export-token`; compared in constant time; anything wrong is 401). Paths are those of KubeVirt's
export proxy, so `virtctl vmexport` works as it is. Bytes come from the agent of the disk's host and are passed on as
fast as the client takes them; nothing is kept here.
"""

from __future__ import annotations

import base64
import binascii
import copy
import hmac
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from stead.kinds import exported, register
from stead.kinds.exported import Disk
from stead.kube import encoding
from stead.kube.errors import ApiError
from stead.server.agents import Agents
from stead.server.answer import YAML, Answer, json_answer, text_answer
from stead.server.node_authz import SELECTED_NODE, SNAPSHOT_HOST
from stead.server.registry import Registry

if TYPE_CHECKING:
    from stead.server.exchange import Exchange

Object = dict[str, Any]

PREFIX = "/api/export.kubevirt.io/"
_VERSIONS = ("v1beta1", "v1")


class Exports:
    """See the module's prose."""

    def __init__(self, registry: Registry, agents: Agents) -> None:
        self._registry = registry
        self._agents = agents

    async def handle(self, exchange: Exchange) -> Answer | None:
        """Answer a request below `/api/export.kubevirt.io/`."""
        parts = [unquote(part) for part in exchange.request.path.removeprefix(PREFIX).strip("/").split("/")]
        named = parts[1:2] + parts[3:4] == ["namespaces", register.MACHINE_EXPORT.plural]
        if len(parts) < 6 or parts[0] not in _VERSIONS or not named or exchange.scope["type"] != "http":
            return text_answer("404 page not found\n", 404)
        if exchange.request.method not in ("GET", "HEAD"):
            return Answer(405, b"", "")
        export = self._registry.peek(register.MACHINE_EXPORT, parts[2], parts[4])
        token = self._token(export) if export is not None else None
        if export is None or token is None or not hmac.compare_digest(_shown(exchange).encode(), token.encode()):
            return Answer(401, b"", "")
        if (export.get("status") or {}).get("phase") != "Ready":
            return text_answer("the export is not ready\n", 503)
        rest = parts[5:]
        if rest[0] == "volumes" and len(rest) == 3:
            return await self._disk(exchange, export, rest[1], rest[2])
        if rest[0] in ("external", "internal") and len(rest) == 3 and rest[1] == "manifests":
            return self._manifest(exchange, export, token, rest[2])
        return text_answer("404 page not found\n", 404)

    def _token(self, export: Object) -> str | None:
        name = (export.get("status") or {}).get("tokenSecretRef") or ""
        secret = self._registry.peek(register.SECRET, export["metadata"]["namespace"], name) if name else None
        try:
            token = base64.b64decode((secret or {}).get("data", {})["token"], validate=True).decode()
        except (KeyError, binascii.Error, UnicodeDecodeError, ValueError):
            return None
        return token or None

    def _sources(self, export: Object) -> tuple[Object | None, Object | None]:
        """(machine, content of the snapshot) of an export."""
        namespace, source = export["metadata"]["namespace"], export["spec"]["source"]
        if source["kind"] == register.VIRTUAL_MACHINE.kind:
            return self._registry.peek(register.VIRTUAL_MACHINE, namespace, source["name"]), None
        if source["kind"] == register.MACHINE_SNAPSHOT.kind:
            snapshot = self._registry.peek(register.MACHINE_SNAPSHOT, namespace, source["name"])
            name = ((snapshot or {}).get("status") or {}).get("virtualMachineSnapshotContentName") or ""
            return None, self._registry.peek(register.MACHINE_SNAPSHOT_CONTENT, namespace, name)
        return None, None

    # disks -------------------------------------------------------------------------------------------------------

    async def _disk(self, exchange: Exchange, export: Object, name: str, file: str) -> Answer | None:
        format = next((f for f, known in exported.DISKS.items() if known == file), "")
        disk = next((d for d in exported.disks_of(export, *self._sources(export)) if d.name == name), None)
        if disk is None or not format:
            return text_answer("404 page not found\n", 404)
        host, uid = self._place(export["metadata"]["namespace"], disk)
        if not host:
            return text_answer(f"volume {name} is on no host\n", 404)
        if exchange.request.method == "HEAD":
            return Answer(200, b"", "application/octet-stream")
        path = f"/v1/exports/{uid}?format={format}"
        try:
            async with self._agents.reading(host, path) as (headers, chunks):
                await _pass_on(exchange, headers, chunks)
        except ApiError as error:
            if exchange.answered:
                raise
            return text_answer(f"{error.message}\n", error.code)
        return None

    def _place(self, namespace: str, disk: Disk) -> tuple[str, str]:
        """(host, uid) of what holds a disk."""
        resource = register.VOLUME_SNAPSHOT if disk.is_snapshot else register.PERSISTENT_VOLUME_CLAIM
        found = self._registry.peek(resource, namespace, disk.held_by)
        annotations = ((found or {}).get("metadata") or {}).get("annotations") or {}
        host = annotations.get(SNAPSHOT_HOST if disk.is_snapshot else SELECTED_NODE, "")
        return str(host), str(found["metadata"]["uid"]) if found else ""

    # manifests ---------------------------------------------------------------------------------------------------

    def _manifest(self, exchange: Exchange, export: Object, token: str, kind: str) -> Answer:
        if kind == "all":
            items = self._all(export)
        elif kind == "secret":
            items = [_header_secret(export, token)]
        else:
            return text_answer("404 page not found\n", 404)
        body = {"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items}
        if exchange.headers.get("accept", "").startswith("application/json"):
            return json_answer(body)
        return Answer(200, encoding.encode_yaml(body), YAML)

    def _all(self, export: Object) -> list[Object]:
        """The CA, the machine, and a DataVolume a disk that fetches it from here."""
        machine, content = self._sources(export)
        if machine is None:
            machine = (((content or {}).get("spec") or {}).get("source") or {}).get("virtualMachine") or {}
        link = (export["status"].get("links") or {}).get("external") or {}
        authority = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": exported.ca_name(export)},
            "data": {"ca.pem": link.get("cert", "")},
        }
        urls = {v["name"]: next(f["url"] for f in v["formats"] if f["format"] == "gzip") for v in link["volumes"]}
        volumes = [self._data_volume(export, name, url) for name, url in urls.items()]
        return [authority, portable_machine(machine), *volumes]

    def _data_volume(self, export: Object, name: str, url: str) -> Object:
        namespace = export["metadata"]["namespace"]
        claim = self._registry.peek(register.PERSISTENT_VOLUME_CLAIM, namespace, name)
        if claim is None:
            _, content = self._sources(export)
            backups = ((content or {}).get("spec") or {}).get("volumeBackups") or ()
            kept = (b["persistentVolumeClaim"] for b in backups)
            claim = next((c for c in kept if c["metadata"]["name"] == name), None)
        spec = (claim or {}).get("spec") or {}
        http = {
            "url": url,
            "certConfigMap": exported.ca_name(export),
            "secretExtraHeaders": [exported.header_name(export)],
        }
        return {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "DataVolume",
            "metadata": {"name": name},
            "spec": {"source": {"http": http}, "storage": {"resources": spec.get("resources") or {}}},
        }


def portable_machine(machine: Object) -> Object:
    """A machine for another installation: nothing in it is of this one; its claims are DataVolumes."""
    spec = copy.deepcopy(machine.get("spec") or {})
    spec.pop("dataVolumeTemplates", None)
    for matcher in ("instancetype", "preference"):
        if matcher in spec:
            spec[matcher].pop("revisionName", None)
    for volume in ((spec.get("template") or {}).get("spec") or {}).get("volumes") or ():
        claim = volume.pop("persistentVolumeClaim", None)
        if claim is not None:
            volume["dataVolume"] = {"name": claim["claimName"]}
    metadata = machine.get("metadata") or {}
    kept = {k: metadata[k] for k in ("name", "labels", "annotations") if metadata.get(k)}
    return {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": kept, "spec": spec}


def _header_secret(export: Object, token: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": exported.header_name(export)},
        "type": "Opaque",
        "stringData": {"token": f"{exported.TOKEN_HEADER}:{token}"},
    }


def _shown(exchange: Exchange) -> str:
    return exchange.headers.get(exported.TOKEN_HEADER) or exchange.request.query.get(exported.TOKEN_HEADER) or ""


async def _pass_on(exchange: Exchange, headers: dict[str, str], chunks: AsyncIterator[bytes]) -> None:
    """An agent's body to the client, chunk by chunk."""
    sent = [(b"content-type", b"application/octet-stream"), (b"x-content-type-options", b"nosniff")]
    if "content-length" in headers:
        sent.append((b"content-length", headers["content-length"].encode()))
    await exchange.send({"type": "http.response.start", "status": 200, "headers": sent})
    exchange.answered, exchange.code = True, 200
    async for chunk in chunks:
        await exchange.send({"type": "http.response.body", "body": chunk, "more_body": True})
    await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})

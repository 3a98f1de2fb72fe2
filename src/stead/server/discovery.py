"""Discovery: which groups, versions and kinds there are, in the legacy and the aggregated form.

Called by `app`. Built from the catalogue, anew whenever that changes. Follows D1 to D3: lists only verbs that
work; the aggregated form is chosen by Accept and marked in the Content-Type, with an ETag.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import msgspec

from stead.kinds import register
from stead.server.answer import NOSNIFF, Answer, json_answer
from stead.server.catalogue import OWN_SUBRESOURCE_GROUP, SUBRESOURCE_GROUP, SUBRESOURCE_GROUPS, Catalogue, Served

_encoder = msgspec.json.Encoder()

_AGGREGATED = "application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
_CUSTOM_ORDER = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")
_READ_WRITE = ["get", "patch", "update"]

#: those of KubeVirt's subresources that its API server lists and we have
KUBEVIRT_SUBRESOURCES = (
    "expand-vm-spec",
    *(
        f"virtualmachineinstances/{name}"
        for name in (
            "vnc", "vnc/screenshot", "console", "portforward", "pause", "unpause", "freeze", "unfreeze", "reset",
            "softreboot", "guestosinfo", "userlist", "filesystemlist", "addvolume", "removevolume", "objectgraph",
            "evacuate/cancel",
        )
    ),
    *(
        f"virtualmachines/{name}"
        for name in ("start", "stop", "restart", "migrate", "expand-spec", "objectgraph", "evacuate/cancel")
    ),
)  # fmt: skip

#: kinds that the original keeps in an older version than it serves: what tells storage versions apart says so
_STORED_AS = {"CustomResourceDefinition": "v1beta1"}

OWN_SUBRESOURCES = ("virtualmachineinstances/stats", "virtualmachineinstances/xml")


class Discovery:
    """See the module's prose."""

    def __init__(self, catalogue: Catalogue, server_address: str = "") -> None:
        self._catalogue = catalogue
        self._address = server_address
        self._aggregated: dict[tuple[str, str], tuple[bytes, str]] = {}
        self._revision = catalogue.revision

    def roots(self, path: str, accept: str, if_none_match: str) -> Answer | None:
        """`/api` and `/apis`, in the form that Accept asks for."""
        version = _aggregated_version(accept)
        if version:
            if self._revision != self._catalogue.revision:
                self._aggregated.clear()
                self._revision = self._catalogue.revision
            return self._aggregated_answer(path, version, if_none_match)
        if path == "/api":
            return json_answer({
                "kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": self._address}],
            })  # fmt: skip
        groups = [_group(name, versions) for name, versions in self._catalogue.groups().items() if name]
        return json_answer({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})

    def legacy(self, parts: list[str]) -> Answer | None:
        """`/apis/GROUP`, `/api/v1`, `/apis/GROUP/VERSION`; None if there is no such."""
        groups = self._catalogue.groups()
        if parts[0] == "apis" and len(parts) == 2 and parts[1] in groups:
            return json_answer({"kind": "APIGroup", "apiVersion": "v1", **_group(parts[1], groups[parts[1]])})
        group = parts[1] if parts[0] == "apis" and len(parts) == 3 else ""
        version = parts[-1]
        if version not in groups.get(group, ()) or (parts[0] == "api") != (group == ""):
            return None
        answer = json_answer(self._resources(group, version))
        answer.headers = [NOSNIFF] if group == SUBRESOURCE_GROUP else []
        return answer

    def paths(self) -> list[str]:
        """What `/` lists."""
        found = ["/api", "/api/v1", "/apis", "/apis/"]
        for group, versions in self._catalogue.groups().items():
            if group:
                found += [f"/apis/{group}", *(f"/apis/{group}/{version}" for version in versions)]
        return [*found, "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]

    def _resources(self, group: str, version: str) -> dict[str, Any]:
        resources: list[dict[str, Any]] = []
        listed = {SUBRESOURCE_GROUP: KUBEVIRT_SUBRESOURCES, OWN_SUBRESOURCE_GROUP: OWN_SUBRESOURCES}.get(group)
        if listed is not None:
            for name in listed:
                namespaced = "/" in name or name == "expand-vm-spec"
                resources.append({"name": name, "singularName": "", "namespaced": namespaced,
                                  "kind": "", "verbs": None})  # fmt: skip
        for served in self._catalogue.in_version(group, version):
            resources += _legacy_entries(served)
        body: dict[str, Any] = {"kind": "APIResourceList", "apiVersion": "v1"}
        body["groupVersion"] = f"{group}/{version}" if group else version
        body["resources"] = resources
        if not group:
            del body["apiVersion"]
        return body

    def _aggregated_answer(self, path: str, version: str, if_none_match: str) -> Answer:
        body, etag = self._aggregated_body(path, version)
        headers = [("ETag", f'"{etag}"'), ("Vary", "Accept"), ("Cache-Control", "public")]
        if if_none_match.strip('"') == etag:
            return Answer(304, b"", "", headers)
        return Answer(200, body, _AGGREGATED.format(version=version), headers)

    def _aggregated_body(self, path: str, version: str) -> tuple[bytes, str]:
        known = self._aggregated.get((path, version))
        if known is not None:
            return known
        items = []
        for group, versions in self._catalogue.groups().items():
            if (path == "/api") != (group == ""):
                continue
            metadata: dict[str, Any] = (
                {"name": group, "creationTimestamp": None} if group else {"creationTimestamp": None}
            )
            items.append({
                "metadata": metadata,
                "versions": [
                    {"version": v, "resources": self._aggregated_resources(group, v), "freshness": "Current"}
                    for v in versions
                ],
            })  # fmt: skip
        body = _encoder.encode({
            "kind": "APIGroupDiscoveryList", "apiVersion": f"apidiscovery.k8s.io/{version}", "metadata": {},
            "items": items,
        })  # fmt: skip
        made = (body, hashlib.sha256(body).hexdigest().upper()[:64])
        self._aggregated[path, version] = made
        return made

    def _aggregated_resources(self, group: str, version: str) -> list[dict[str, Any]]:
        if group in SUBRESOURCE_GROUPS:
            return []
        return [_aggregated_entry(served, version) for served in self._catalogue.in_version(group, version)]


def _aggregated_version(accept: str) -> str:
    """The version of APIGroupDiscoveryList that the first fitting clause of Accept asks for, or ""."""
    for clause in accept.split(","):
        params = dict(part.strip().split("=", 1) for part in clause.split(";")[1:] if "=" in part)
        if params.get("as") == "APIGroupDiscoveryList" and params.get("g") == "apidiscovery.k8s.io":
            if params.get("v") == "v2":
                return "v2"
        elif clause.strip().startswith(("application/json", "*/*")):
            return ""
    return ""


def _group(name: str, versions: tuple[str, ...]) -> dict[str, Any]:
    listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[0]}


def _legacy_entries(served: Served) -> list[dict[str, Any]]:
    resource = served.resource
    entry: dict[str, Any] = {
        "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
        "kind": resource.kind, "verbs": sorted(resource.verbs) if resource.builtin else _custom_order(resource.verbs),
    }  # fmt: skip
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    if "watch" in resource.verbs:
        # Events of both groups are stored as the older one.
        stored = register.EVENT if resource.kind == register.EVENT.kind and resource.builtin else resource
        version = _STORED_AS.get(stored.kind, stored.version) if stored.builtin else stored.version
        identity = f"{stored.group}/{version}/{stored.kind}"
        entry["storageVersionHash"] = base64.b64encode(hashlib.sha256(identity.encode()).digest()[:8]).decode()
    found = [entry]
    for name, kind, verbs, extra in subresources_of(served):
        found.append({
            "name": f"{resource.plural}/{name}", "singularName": "", "namespaced": resource.namespaced, **extra,
            "kind": kind, "verbs": verbs,
        })  # fmt: skip
    return found


def _custom_order(verbs: tuple[str, ...]) -> list[str]:
    """Verbs in the order in which the original lists them for custom kinds."""
    return [verb for verb in _CUSTOM_ORDER if verb in verbs]


def subresources_of(served: Served) -> list[tuple[str, str, list[str], dict[str, str]]]:
    """(name, kind, verbs, group and version where they differ) of a kind's subresources."""
    resource = served.resource
    found: list[tuple[str, str, list[str], dict[str, str]]] = []
    if resource.kind == "Namespace" and resource.builtin:
        found.append(("finalize", "Namespace", ["update"], {}))
    if resource.scale:
        found.append(("scale", "Scale", _READ_WRITE, {"group": "autoscaling", "version": "v1"}))
    if resource.status_subresource:
        found.append(("status", resource.kind, _READ_WRITE, {}))
    if resource.edition:
        found.reverse()
    if resource.kind == "ServiceAccount" and resource.builtin:
        found.append(("token", "TokenRequest", ["create"], {"group": "authentication.k8s.io", "version": "v1"}))
    return found


def _aggregated_entry(served: Served, version: str) -> dict[str, Any]:
    resource = served.resource
    kind = {"group": resource.group, "version": version, "kind": resource.kind}
    entry: dict[str, Any] = {
        "resource": resource.plural, "responseKind": kind,
        "scope": "Namespaced" if resource.namespaced else "Cluster", "singularResource": resource.singular,
        "verbs": sorted(resource.verbs),
    }  # fmt: skip
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    inner = [
        {
            "subresource": name,
            "responseKind": {
                "group": extra.get("group", resource.group),
                "version": extra.get("version", version),
                "kind": k,
            },
            "verbs": verbs,
        }
        for name, k, verbs, extra in subresources_of(served)
    ]
    if inner:
        entry["subresources"] = inner
    return entry

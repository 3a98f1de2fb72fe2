"""OpenAPI documents: v3 for each group-version, v2 as JSON and protobuf, made from the structural schemas.

Called by `app`. Documents are made on first use, in a thread, and kept. Follows O1 to O3: every served kind has a
schema with its group, version and kind, and a path with get, post, put, patch and delete; `patch` carries
`fieldValidation`, and for built-in kinds offers strategic merge patch.
"""

from __future__ import annotations

import asyncio
import hashlib
from email.utils import formatdate
from time import time
from typing import Any

import msgspec

from stead.kinds.foreign import is_own_group
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError
from stead.kube.schema import OBJECT_META
from stead.server import openapi_protobuf
from stead.server.answer import Answer
from stead.server.catalogue import Catalogue, Served
from stead.server.request import Query

_encoder = msgspec.json.Encoder()
_YEAR_SECONDS = 365 * 86400
_META_NAME = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"

Schema = dict[str, Any]


class OpenApi:
    """See the module's prose."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._documents: dict[str, tuple[bytes, str]] = {}
        self._v2: tuple[bytes, str] | None = None
        self._v2_binary: tuple[bytes, str] | None = None
        self._revision = catalogue.revision

    async def answer(self, path: str, query: Query, headers: dict[str, str]) -> Answer | None:
        """The answer to a path below /openapi; None if there is none."""
        accept = headers.get("accept", "")
        self._forget_old()
        if path == "/openapi/v3":
            return await self._index()
        if path == "/openapi/v2":
            return await self._answer_v2(accept, headers)
        name = path.removeprefix("/openapi/v3/")
        if not path.startswith("/openapi/v3/"):
            return None
        # Like the original, these two say nothing but the code.
        if name not in self._names():
            return Answer(404, b"", "")
        if accept and "json" not in accept and "*/*" not in accept:
            return Answer(406, b"", "", [("Vary", "Accept")])
        body, tag = await self._document(name)
        wanted = query.get("hash")
        if wanted is not None and wanted != tag:
            location = [("Location", f"/openapi/v3/{name}?hash={tag}"), ("Etag", f'"{tag}"'), ("Vary", "Accept")]
            return Answer(301, b"", headers=location)
        answer = _cached(body, tag, headers)
        if wanted is not None and answer.code == 200:
            expires = formatdate(time() + _YEAR_SECONDS, usegmt=True)
            answer.headers += [("Cache-Control", "public, immutable"), ("Expires", expires)]
        return answer

    def _forget_old(self) -> None:
        """Drop what no longer describes what is served; documents of our own groups stay as they are."""
        if self._revision == self._catalogue.revision:
            return
        self._revision, self._v2, self._v2_binary = self._catalogue.revision, None, None
        for name in [name for name in self._documents if is_foreign(name)]:
            del self._documents[name]

    async def _answer_v2(self, accept: str, headers: dict[str, str]) -> Answer:
        binary = openapi_protobuf.is_asked_for(accept) and "application/json" not in accept
        if accept and not binary and "json" not in accept and "*/*" not in accept:
            raise _not_acceptable()
        revision = self._revision
        found = self._v2 if self._v2 is not None else await asyncio.to_thread(self._make_v2)
        # What was made while the catalogue changed is answered, and not kept.
        if revision == self._revision:
            self._v2 = found
        if not binary:
            return _cached(*found, headers)
        packed = self._v2_binary
        if packed is None:
            packed = await asyncio.to_thread(self._make_v2_binary, found[0])
        if revision == self._revision:
            self._v2_binary = packed
        answer = _cached(*packed, headers)
        answer.content_type = openapi_protobuf.MEDIA_TYPE
        return answer

    def _make_v2_binary(self, document: bytes) -> tuple[bytes, str]:
        patched = []
        for name, (group, version) in self._names().items():
            for served in self._catalogue.in_version(group, version):
                kind = {"group": group, "version": version, "kind": served.resource.kind}
                patched.append((f"/{name}/{served.resource.plural}/{{name}}", kind))
        body = openapi_protobuf.encode(msgspec.json.decode(document), patched)
        return body, _hash(body)

    def _names(self) -> dict[str, tuple[str, str]]:
        """Document name → (group, version)."""
        found = {}
        for group, versions in self._catalogue.groups().items():
            for version in versions:
                if self._catalogue.in_version(group, version):
                    found[f"apis/{group}/{version}" if group else f"api/{version}"] = (group, version)
        return found

    async def _index(self) -> Answer:
        paths = {}
        for name in self._names():
            _, tag = await self._document(name)
            paths[name] = {"serverRelativeURL": f"/openapi/v3/{name}?hash={tag}"}
        body = _encoder.encode({"paths": paths})
        return Answer(200, body, "text/plain; charset=utf-8")

    async def _document(self, name: str) -> tuple[bytes, str]:
        known = self._documents.get(name)
        if known is None:
            revision = self._revision
            prefix, _, version = name.rpartition("/")
            group = prefix.removeprefix("apis/") if prefix != "api" else ""
            body = await asyncio.to_thread(self._make_v3, group, version)
            known = (body, _hash(body))
            if revision == self._revision:
                self._documents[name] = known
        return known

    def _make_v3(self, group: str, version: str) -> bytes:
        schemas: dict[str, Schema] = {_META_NAME: OBJECT_META}
        paths: dict[str, Any] = {}
        for served in self._catalogue.in_version(group, version):
            name = schema_name(served.resource, version)
            schemas[name] = _component(served, version)
            paths.update(_paths(served.resource, version, name))
        return _encoder.encode({
            "openapi": "3.0.0", "info": {"title": "Stead", "version": "unversioned"}, "paths": paths,
            "components": {"schemas": schemas},
        })  # fmt: skip

    def _make_v2(self) -> tuple[bytes, str]:
        definitions: dict[str, Schema] = {_META_NAME: OBJECT_META}
        for group, versions in self._catalogue.groups().items():
            for version in versions:
                for served in self._catalogue.in_version(group, version):
                    component = _component(served, version)
                    definitions[schema_name(served.resource, version)] = _as_v2(component)
        body = _encoder.encode({
            "swagger": "2.0", "info": {"title": "Stead", "version": "unversioned"}, "paths": {},
            "definitions": definitions,
        })  # fmt: skip
        return body, _hash(body)


def is_foreign(name: str) -> bool:
    """Whether a document describes a group of users' own."""
    parts = name.split("/")
    return parts[0] == "apis" and not is_own_group(parts[1])


def schema_name(resource: Resource, version: str) -> str:
    """The name of a kind's schema in documents: reversed group, version, kind."""
    if resource.builtin:
        group = resource.group.partition(".")[0] or "core"
        return f"io.k8s.api.{group}.{version}.{resource.kind}"
    return ".".join([*reversed(resource.group.split(".")), version, resource.kind])


def _component(served: Served, version: str) -> Schema:
    """The published schema of a kind: metadata by reference, its group, version and kind."""
    properties = dict(served.schema.get("properties", {}))
    description = properties.get("metadata", {}).get("description", "Standard object metadata.")
    properties["metadata"] = {
        "description": description, "allOf": [{"$ref": f"#/components/schemas/{_META_NAME}"}],
    }  # fmt: skip
    if served.resource.builtin:
        properties["metadata"]["default"] = {}
    kind = {"group": served.resource.group, "version": version, "kind": served.resource.kind}
    return {**served.schema, "properties": properties, "x-kubernetes-group-version-kind": [kind]}


def _as_v2(component: Schema) -> Schema:
    properties = dict(component["properties"])
    properties["metadata"] = {"$ref": f"#/definitions/{_META_NAME}"}
    return {**component, "properties": properties}


def _paths(resource: Resource, version: str, name: str) -> dict[str, Any]:
    base = f"/apis/{resource.group}/{version}" if resource.group else f"/api/{version}"
    below = "/namespaces/{namespace}" if resource.namespaced else ""
    collection = f"{base}{below}/{resource.plural}"
    kind = {"group": resource.group, "version": version, "kind": resource.kind}
    reference = {"schema": {"$ref": f"#/components/schemas/{name}"}}
    answers = {"200": {"description": "OK", "content": {"application/json": reference}}}

    def operation(action: str, verb: str, patch: bool = False) -> dict[str, Any]:
        found: dict[str, Any] = {
            "description": f"{verb} {resource.kind}", "operationId": f"{verb}{resource.kind}{version.capitalize()}",
            "responses": answers, "x-kubernetes-action": action, "x-kubernetes-group-version-kind": kind,
        }  # fmt: skip
        if action in ("post", "put", "patch"):
            found["parameters"] = [_parameter(text) for text in ("dryRun", "fieldManager", "fieldValidation")]
            content = _patch_types(resource) if patch else {"*/*": reference}
            found["requestBody"] = {"content": content, "required": True}
        return found

    item: dict[str, Any] = {
        "get": operation("get", "read"), "put": operation("put", "replace"),
        "patch": operation("patch", "patch", patch=True), "delete": operation("delete", "delete"),
        "parameters": [_path_parameter("name")],
    }  # fmt: skip
    many: dict[str, Any] = {"get": operation("list", "list"), "post": operation("post", "create")}
    if resource.namespaced:
        item["parameters"].append(_path_parameter("namespace"))
        many["parameters"] = [_path_parameter("namespace")]
    if resource.verbs == ("create",):
        return {collection: {"post": many["post"]}}
    return {collection: many, f"{collection}/{{name}}": item}


def _patch_types(resource: Resource) -> dict[str, Any]:
    types = ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"]
    if resource.builtin:
        types.append("application/strategic-merge-patch+json")
    return {name: {"schema": {"type": "object"}} for name in types}


def _parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": True}}


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "uniqueItems": True}}


def _hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest().upper()[:64]


def _cached(body: bytes, tag: str, headers: dict[str, str]) -> Answer:
    found = [("Etag", f'"{tag}"'), ("Vary", "Accept")]
    if headers.get("if-none-match", "").strip('"') == tag:
        return Answer(304, b"", "", found)
    return Answer(200, body, headers=found)


def _not_acceptable() -> ApiError:
    return ApiError("NotAcceptable", "only the following media types are accepted: application/json")

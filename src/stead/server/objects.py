"""Requests on objects: which kind and verb, the body decoded, the verb called, its outcome in the shape asked for.

Called by `app` once a request is allowed and has its place. Follows N1, N2, Q4 and the table of errors. On the event
loop; keeps nothing but the open watches.
"""

from __future__ import annotations

import msgspec

from stead.kinds import register
from stead.kinds.old_manifests import newer_version
from stead.kinds.resource import Resource
from stead.kube import encoding, meta
from stead.kube.errors import ApiError, not_found
from stead.server import foreign, mutation, scale, streaming
from stead.server.answer import (
    JSON,
    NOSNIFF,
    YAML,
    Accepted,
    Answer,
    check_route,
    json_answer,
    negotiate,
    not_sniffed,
    text_answer,
)
from stead.server.bodies import decode_delete_options, decode_object, media_type, read_body
from stead.server.calls import Call, Outcome, delete_options, write_options
from stead.server.catalogue import SUBRESOURCE_GROUPS, Catalogue, Served
from stead.server.exchange import Exchange, Server
from stead.server.paths import Paths, method_not_allowed, no_resource
from stead.server.reading import list_answer, list_body, list_options
from stead.server.request import Request
from stead.server.shapes import Shape, shape_of


class Objects:
    """See the module's prose."""

    def __init__(self, server: Server, paths: Paths) -> None:
        self._server = server
        self._paths = paths
        self._watches = streaming.Watches(server.metrics)

    def stop(self) -> None:
        """End every watch cleanly."""
        self._watches.close()

    async def websocket(self, exchange: Exchange) -> Answer | None:
        """A WebSocket: a stream of a machine, a watch, or a refusal."""
        request = exchange.request
        if request.group in SUBRESOURCE_GROUPS and self._server.subresources is not None:
            await self._server.subresources.websocket(exchange)
            return None
        return await self.answer(exchange) if request.is_resource else await self._paths.other(exchange)

    async def answer(self, exchange: Exchange) -> Answer | None:
        """A request on a resource; None when a stream has answered. Raises 404 and 405 besides what the verbs raise."""
        request, server = exchange.request, self._server
        if request.group in SUBRESOURCE_GROUPS and server.subresources is not None:
            with not_sniffed():
                found = await server.subresources.http(exchange)
            if found is not None and NOSNIFF not in found.headers:
                found.headers = [*found.headers, NOSNIFF]
            return found
        served = server.catalogue.find(request.group, request.version, request.plural)
        if served is None:
            return _unknown(server.catalogue, request)
        resource = served.resource
        if "//" in request.path or "/" in request.name:
            raise no_resource()
        if resource is register.NAMESPACE:
            # `namespaces/x/namespaces/y` would be authorised in x and act on y.
            if request.namespace != request.name:
                raise no_resource()
        elif resource.namespaced != bool(request.namespace):
            everywhere = resource.namespaced and not request.name
            if everywhere and request.verb not in ("list", "watch"):
                if not resource.builtin:
                    return text_answer("404 page not found\n", 404)
                raise method_not_allowed()
            if not everywhere:
                return text_answer("404 page not found\n", 404)
        if request.subresource:
            return await self._subresource(exchange, served)
        if request.verb == "create":
            foreign.check_creatable(resource)
        if request.verb not in resource.verbs or (request.verb == "create" and request.name):
            raise method_not_allowed()
        if request.verb in ("get", "update", "patch", "delete") and not request.name:
            raise method_not_allowed()
        return await self._verb(exchange, served)

    async def _subresource(self, exchange: Exchange, served: Served) -> Answer | None:
        request, resource = exchange.request, served.resource
        if resource is register.SERVICE_ACCOUNT and request.subresource == "token":
            if request.verb != "create" or self._server.reviews is None:
                raise method_not_allowed()
            body = await read_body(exchange.receive, exchange.headers)
            return await self._server.reviews.token(
                exchange, self._decode(exchange, served, body, other_kind=True).value
            )
        allowed = (request.subresource == "status" and resource.status_subresource) or (
            request.subresource == "finalize" and resource is register.NAMESPACE
        )
        if request.subresource == "scale" and resource.scale and not request.rest:
            return await self._scale(exchange, served)
        if not allowed or request.rest:
            raise no_resource() if resource.builtin else not_found(resource.plural, request.name, resource.group)
        verbs = ("update",) if request.subresource == "finalize" else ("get", "update", "patch")
        if request.verb not in verbs:
            raise method_not_allowed() if resource.builtin else _unsupported(resource, request.verb)
        return await self._verb(exchange, served)

    async def _scale(self, exchange: Exchange, served: Served) -> Answer:
        request, verbs = exchange.request, self._server.verbs
        accepted = negotiate(exchange.headers.get("accept", ""))
        namespace = request.namespace if served.resource.namespaced else ""
        if request.verb not in ("get", "update", "patch"):
            raise method_not_allowed()
        warnings: list[str] = []
        obj = verbs.get(served.resource, namespace, request.name).obj
        if request.verb != "get":
            body = await read_body(exchange.receive, exchange.headers)
            options = "UpdateOptions" if request.verb == "update" else "PatchOptions"
            call = msgspec.structs.replace(self._call(exchange, served, options), subresource="")
            wanted = scale.scale_of(served.resource, obj)
            if request.verb == "update":
                wanted = self._decode(exchange, served, body, other_kind=True).value
            else:
                kind = mutation.check_type(served.resource, exchange.headers.get("content-type", ""))
                wanted = scale.patched(kind, body, wanted)
            outcome = await scale.update(verbs, call, wanted)
            obj, warnings = outcome.record.obj if outcome.record is not None else obj, outcome.warnings
        found = scale.scale_of(served.resource, obj)
        answer = json_answer(scale.table_of(found) if accepted.projection == "Table" else found)
        answer.warnings = warnings
        return _formatted(answer, accepted)

    async def _verb(self, exchange: Exchange, served: Served) -> Answer | None:
        request = exchange.request
        accept = exchange.headers.get("accept", "")
        if served.resource.builtin:
            check_route(accept, is_collection=request.verb in ("list", "watch"))
        accepted = negotiate(accept)
        shape = shape_of(served.resource, request.version, accepted, request.query.get("includeObject") or "")
        if request.verb == "watch":
            return await self._watch(exchange, shape, accepted)
        if request.verb == "get":
            return await self._get(exchange, shape, accepted)
        if request.verb == "list":
            return await self._list(exchange, shape, accepted)
        body = exchange.body = await read_body(exchange.receive, exchange.headers)
        if request.verb == "create":
            return await self._create(exchange, served, shape, accepted, body)
        if request.verb == "update":
            call = self._call(exchange, served, "UpdateOptions")
            decoded = self._decode(exchange, served, body)
            return self._outcome(
                await self._server.verbs.update(call, decoded.value, decoded.problems), shape, accepted
            )
        if request.verb == "patch":
            return await self._patch(exchange, served, shape, accepted, body)
        return await self._delete(exchange, served, shape, accepted, body)

    def _call(self, exchange: Exchange, served: Served, options: str) -> Call:
        request = exchange.request
        return Call(
            user=exchange.user, resource=served.resource, version=request.version,
            namespace=request.namespace if served.resource.namespaced else "", name=request.name,
            subresource=request.subresource,
            options=write_options(options, request.query, exchange.headers.get("user-agent", "")),
        )  # fmt: skip

    def _decode(self, exchange: Exchange, served: Served, body: bytes, *, other_kind: bool = False) -> encoding.Decoded:
        return decode_object(body, media_type(exchange.headers), served.resource, other_kind=other_kind)

    async def _get(self, exchange: Exchange, shape: Shape, accepted: Accepted) -> Answer:
        request, verbs = exchange.request, self._server.verbs
        text = request.query.get("resourceVersion") or ""
        if text and text != "0":
            if not text.isdigit():
                shown = meta.go_quote(text)
                text = f"resourceVersion: Invalid value: {shown}: strconv.ParseUint: parsing {shown}: invalid syntax"
                raise ApiError("BadRequest", text)
            await verbs.reader.wait_until(int(text))
        namespace = request.namespace if shape.resource.namespaced else ""
        record = verbs.get(shape.resource, namespace, request.name)
        return _formatted(Answer(200, shape.single(record)), accepted)

    async def _list(self, exchange: Exchange, shape: Shape, accepted: Accepted) -> Answer:
        request = exchange.request
        options = list_options(shape.resource, request.query)
        try:
            page = await self._server.verbs.reader.page(shape.resource, request.namespace, options)
        except ApiError as error:
            token = (error.details or {}).get("continue")
            if token is None:
                raise
            status = {**error.status(), "metadata": {"continue": token}}
            status.pop("details", None)
            return json_answer(status, error.code)
        if accepted.format == "yaml":
            return _formatted(Answer(200, list_body(shape, page)), accepted)
        return list_answer(shape, page)

    async def _watch(self, exchange: Exchange, shape: Shape, accepted: Accepted) -> Answer | None:
        if accepted.format == "yaml":
            raise streaming.unacceptable()
        request = exchange.request
        namespace = request.namespace if shape.resource.namespaced else ""
        return await self._watches.serve(exchange, self._server.verbs.registry, shape, namespace)

    async def _create(
        self, exchange: Exchange, served: Served, shape: Shape, accepted: Accepted, body: bytes
    ) -> Answer:
        call = self._call(exchange, served, "CreateOptions")
        decoded = self._decode(exchange, served, body)
        if served.resource is register.JOIN:
            if self._server.joins is None:
                raise method_not_allowed()
            return _formatted(await self._server.joins.create(exchange, decoded.value), accepted)
        if served.is_virtual:
            if self._server.reviews is None:
                raise method_not_allowed()
            return _formatted(await self._server.reviews.create(exchange, served, decoded.value), accepted)
        return self._outcome(await self._server.verbs.create(call, decoded.value, decoded.problems), shape, accepted)

    async def _patch(self, exchange: Exchange, served: Served, shape: Shape, accepted: Accepted, body: bytes) -> Answer:
        kind = mutation.check_type(served.resource, exchange.headers.get("content-type", ""))
        call = self._call(exchange, served, "PatchOptions")
        mutation.check_patch_options(call, kind)
        if kind == "application/apply-patch+yaml":
            decoded = decode_object(body, kind, served.resource, apply=True)
            outcome = await self._server.verbs.apply(call, decoded.value, decoded.problems)
        else:
            outcome = await self._server.verbs.patch(call, mutation.change_from(kind, body))
        return self._outcome(outcome, shape, accepted)

    async def _delete(
        self, exchange: Exchange, served: Served, shape: Shape, accepted: Accepted, body: bytes
    ) -> Answer:
        request, verbs = exchange.request, self._server.verbs
        options = delete_options(decode_delete_options(body, media_type(exchange.headers)), request.query)
        call = Call(
            user=exchange.user, resource=served.resource, version=request.version,
            namespace=request.namespace if served.resource.namespaced else "", name=request.name,
        )  # fmt: skip
        if request.verb == "deletecollection":
            selected = list_options(served.resource, request.query)
            page = await verbs.delete_collection(call, msgspec.structs.replace(selected, limit=0), options)
            return _formatted(Answer(200, list_body(shape, page)), accepted)
        return self._outcome(await verbs.delete(call, options), shape, accepted)

    def _outcome(self, outcome: Outcome, shape: Shape, accepted: Accepted) -> Answer:
        if outcome.record is None:
            answer = json_answer(outcome.status, outcome.code)
        else:
            answer = Answer(outcome.code, shape.single(outcome.record))
        answer.warnings = outcome.warnings
        return _formatted(answer, accepted)


def _formatted(answer: Answer, accepted: Accepted) -> Answer:
    """The answer in YAML where the client wants that."""
    if accepted.format == "yaml" and answer.content_type == JSON:
        answer.body, answer.content_type = encoding.encode_yaml(msgspec.json.decode(answer.body)), YAML
    return answer


def _unsupported(resource: Resource, verb: str) -> ApiError:
    """405 of custom resources."""
    qualified = f"{resource.plural}.{resource.group}"
    text = f'{verb} is not supported on resources of kind "{qualified}"'
    return ApiError("MethodNotAllowed", text, {"group": resource.group, "kind": resource.plural})


def _unknown(catalogue: Catalogue, request: Request) -> Answer:
    """An unknown resource: a Status (raised) below built-in groups, plain text elsewhere.

    Pods are forbidden, not unknown: `kubectl describe node` goes on without those that it may not see.
    """
    if (request.group, request.plural, request.verb) == ("", "pods", "list"):
        raise ApiError("Forbidden", "pods is forbidden: Stead runs machines, not pods", {"kind": "pods"})
    newer = newer_version(request.group, request.version)
    if newer is not None and catalogue.find(request.group, newer, request.plural) is not None:
        text = f"{request.group}/{request.version} is not served any more: use {request.group}/{newer}"
        raise ApiError("NotFound", f"the server could not find the requested resource: {text} (see stead convert)", {})
    builtin = any(s.resource.builtin and s.resource.group == request.group for s in catalogue.all)
    if builtin:
        raise no_resource()
    return text_answer("404 page not found\n", 404)

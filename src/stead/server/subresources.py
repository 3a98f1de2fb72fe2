"""KubeVirt's subresource API: start, stop, pause, console, vnc and the rest, for machines and instances.

Called by `app` for the groups `subresources.kubevirt.io` and `subresources.stead.io` (our own questions: a machine's
domain XML, its counters), after authorisation. What a call does is decided by `server.lifecycle` (pure); this module
reads the objects, carries the decision out (patches through `verbs`, calls and streams through `agents`) and answers as
KubeVirt does: 202 with an empty body for what changes something, JSON or an image for questions, a WebSocket for
streams. Follows Z1 and Z2.
"""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING, Any

import msgspec

from stead import __version__
from stead.kinds import register
from stead.kinds.resource import Resource
from stead.kube import encoding, patch, schema
from stead.kube.errors import ApiError, invalid, not_found
from stead.server import lifecycle, mutation
from stead.server.admission import schema_texts
from stead.server.admission.cluster import cluster_from_lookup
from stead.server.agents import Agents
from stead.server.answer import Answer, json_answer, text_answer
from stead.server.authn import MASTERS, User
from stead.server.bodies import media_type, read_body
from stead.server.calls import Call, Options
from stead.server.catalogue import OWN_SUBRESOURCE_GROUP
from stead.server.health import version_info
from stead.server.lifecycle import Decision, PlainError
from stead.server.lookup import MemoryLookup
from stead.server.request import Request
from stead.server.verbs import Verbs

if TYPE_CHECKING:
    from stead.server.exchange import Exchange

Object = dict[str, Any]

#: who writes on a caller's behalf: RBAC was asked about the subresource, not about the object
SERVER = User(
    "system:serviceaccount:kubevirt:kubevirt-apiserver",
    groups=("system:serviceaccounts", "system:serviceaccounts:kubevirt", "system:authenticated", MASTERS),
)
#: our own questions, group `subresources.stead.io`
_OWN = ("xml", "stats")


class _Options(msgspec.Struct):
    """Options of calls that change something; each call reads its own."""

    dryRun: list[str] | None = None
    paused: bool | None = None
    gracePeriod: int | None = None
    gracePeriodSeconds: int | None = None
    addedNodeSelector: dict[str, str] | None = None
    unfreezeTimeout: str | None = None
    name: str | None = None
    claimName: str | None = None
    disk: dict[str, Any] | None = None
    volumeSource: dict[str, Any] | None = None


#: calls whose options are typed before they are decided
_OPTIONS: dict[str, type[msgspec.Struct]] = dict.fromkeys(
    (
        "start", "stop", "restart", "migrate", "pause", "unpause", "freeze", "unfreeze", "softreboot", "reset",
        "addvolume", "removevolume", "memorydump", "removememorydump", "evacuate/cancel",
    ),
    _Options,
)  # fmt: skip
_UNDERWAY = "unable to complete request: stop/start already underway"


class Subresources:
    """See the module's prose."""

    def __init__(self, verbs: Verbs, agents: Agents) -> None:
        self._verbs = verbs
        self._agents = agents
        self._lookup = MemoryLookup(verbs.registry)

    async def http(self, exchange: Exchange) -> Answer | None:
        """Answer a plain request."""
        request = exchange.request
        if not request.namespace:
            return self._general(request.plural)
        expected = _method(request)
        if expected is None:
            return text_answer("404: Page Not Found", 404)
        if request.method != expected:
            return text_answer("405: Method Not Allowed", 405)
        decision = self._decide(exchange, await self._body(exchange) if request.method == "PUT" else None)
        if decision.streams:
            token = "'upgrade' token not found in 'Connection' header"  # noqa: S105 - no secret
            raise ApiError("BadRequest", f"websocket: the client is not using the websocket protocol: {token}")
        return await self._carry_out(exchange, decision)

    async def websocket(self, exchange: Exchange) -> None:
        """Join a client's WebSocket with its guest. Errors before the upgrade are raised."""
        request = exchange.request
        if not request.namespace or _method(request) != "GET":
            raise ApiError("NotFound", "the server could not find the requested resource", {})
        decision = self._decide(exchange, None)
        if not decision.streams:
            raise ApiError("BadRequest", f"{request.subresource} is no stream: ask for it without an upgrade")
        await self._agents.relay(
            exchange, self._host(exchange), _agent_path(request.namespace, request.name, decision.agent)
        )

    # --- deciding -----------------------------------------------------------------------------------------------

    def _general(self, what: str) -> Answer:
        if what == "version":
            return json_answer({**version_info(), "gitVersion": f"v1.8.0+stead{__version__}"})
        if what == "healthz":
            state = {"apiserver": {"connectivity": "ok", "version": version_info()}}
            return json_answer({**state, "config-resource-version": str(self._verbs.registry.revision)})
        if what.endswith("-cluster-profiler"):
            verb = what.partition("-")[0]
            verb = "dump profiler results" if verb == "dump" else f"{verb} profiler"
            raise PlainError("", f'Unable to {verb}. "ClusterProfiler" feature gate must be enabled', code=403)
        if what == "guestfs":
            # Clients show the text of a 5xx, and words of their own for a 404.
            raise PlainError("", "guestfs needs pods, which are not here: attach the disk to a machine", code=501)
        return text_answer("404: Page Not Found", 404)

    def _decide(self, exchange: Exchange, body: Object | None) -> Decision:
        """The decision about a request. Raises what it is refused with."""
        request, registry = exchange.request, self._verbs.registry
        instance = registry.peek(register.VIRTUAL_MACHINE_INSTANCE, request.namespace, request.name)
        if request.group == OWN_SUBRESOURCE_GROUP:
            return _decide_own(request.name, request.subresource, instance)
        expands = request.plural == lifecycle.EXPAND
        return lifecycle.decide(lifecycle.Call(
            plural=request.plural, namespace=request.namespace, name=request.name,
            path="/".join((request.subresource, *request.rest)), cluster=cluster_from_lookup(self._lookup),
            body=self._expandable(body) if expands else _typed(request.subresource, body),
            machine=registry.peek(register.VIRTUAL_MACHINE, request.namespace, request.name), instance=instance,
            preserve_session=request.query.flag("preserveSession"),
        ))  # fmt: skip

    def _expandable(self, body: Object | None) -> Object:
        """A machine that was sent to be expanded: typed as on a create, nothing else checked."""
        if body is None:
            raise PlainError("", "415: Unsupported Media Type", code=415)
        served = self._verbs.catalogue.served(register.VIRTUAL_MACHINE)
        made: Object = schema.prune(served.schema, body)[0]
        refused, causes = schema_texts.refusal(served.resource, made, schema.validate(served.schema, made))
        if refused is not None:
            raise refused
        if causes:
            name = str((body.get("metadata") or {}).get("name") or "")
            raise invalid(served.resource.kind, served.resource.group, name, causes)
        return made

    async def _body(self, exchange: Exchange) -> Object | None:
        raw = await read_body(exchange.receive, exchange.headers)
        if not raw.strip():
            return None
        try:
            value = encoding.decode(raw, media_type(exchange.headers) or "application/json").value
        except encoding.DecodeError as error:
            where = f"json: offset {error.offset}: " if error.offset else ""
            raise ApiError("BadRequest", f"Can not unmarshal Request body to struct, error: {where}{error}") from error
        if value is not None and not isinstance(value, dict):
            raise ApiError("BadRequest", "Can not unmarshal Request body to struct, error: not an object")
        return value

    # --- carrying out -------------------------------------------------------------------------------------------

    async def _carry_out(self, exchange: Exchange, decision: Decision) -> Answer:
        namespace, name = exchange.request.namespace, exchange.request.name
        dry_run = decision.dry_run or exchange.request.query.all("dryRun") == ["All"]
        if not dry_run:
            await self._patch(register.VIRTUAL_MACHINE_INSTANCE, namespace, name, decision.instance_patch)
            await self._patch(register.VIRTUAL_MACHINE, namespace, name, decision.machine_patch)
            await self._patch(register.VIRTUAL_MACHINE, namespace, name, decision.status_patch, "status")
        if decision.migration is not None and not dry_run:
            await self._migrate(namespace, decision.migration)
        if not decision.agent or dry_run:
            if decision.body is not None:
                return json_answer(decision.body, decision.code)
            return Answer(decision.code, b"", "")
        return await self._ask(exchange, decision)

    async def _migrate(self, namespace: str, spec: Object) -> None:
        """Make the migration that was asked for. What admission refuses is a 500 to this caller, as KubeVirt's is."""
        resource = register.MIGRATION
        call = Call(
            user=SERVER, resource=resource, version=resource.version, namespace=namespace, name="", subresource="",
            options=Options(manager="virt-api", validation="Ignore"),
        )  # fmt: skip
        metadata = {"generateName": "kubevirt-migrate-vm-", "namespace": namespace}
        body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, "spec": spec}
        try:
            await self._verbs.create(call, body)
        except ApiError as error:
            causes = {"causes": [{"message": error.message}]}
            raise ApiError("InternalError", f"Internal error occurred: {error.message}", causes) from error

    async def _ask(self, exchange: Exchange, decision: Decision) -> Answer:
        """Call the agent. Questions are GETs whose answer goes back as it is; changes are PUTs answered by a code."""
        request = exchange.request
        path = _agent_path(request.namespace, request.name, decision.agent)
        if request.method == "GET":
            try:
                reply = await self._agents.call(self._host(exchange), "GET", path)
            except ApiError as error:
                return text_answer(error.message, 500)
            return Answer(decision.code, reply.body, reply.content_type)
        await self._agents.call(self._host(exchange), "PUT", path, decision.agent_body)
        return Answer(decision.code, b"", "")

    def _host(self, exchange: Exchange) -> str:
        request = exchange.request
        instance = self._verbs.registry.peek(register.VIRTUAL_MACHINE_INSTANCE, request.namespace, request.name)
        return str(((instance or {}).get("status") or {}).get("nodeName") or "")

    async def _patch(
        self, resource: Resource, namespace: str, name: str, operations: tuple[Object, ...], subresource: str = ""
    ) -> None:
        if not operations:
            return
        call = Call(
            user=SERVER, resource=resource, version=resource.version, namespace=namespace, name=name,
            subresource=subresource, options=Options(manager="virt-api", validation="Ignore"),
        )  # fmt: skip
        change = mutation.Change(type=patch.JSON_PATCH, operations=list(operations))
        try:
            await self._verbs.patch(call, change)
        except ApiError as error:
            if error.code == 422 and error.message.startswith("the server rejected our request"):
                # The `test` of the patch failed: somebody else's start or stop came between.
                raise ApiError("Conflict", _UNDERWAY, {"name": name, "group": resource.group}) from error
            raise


def _method(request: Request) -> str | None:
    """The HTTP method of the subresource that a request names; None if there is no such."""
    if request.group == OWN_SUBRESOURCE_GROUP:
        return "GET" if request.plural == lifecycle.INSTANCES and request.subresource in _OWN else None
    if request.plural == lifecycle.EXPAND:
        return "PUT"
    if request.plural not in (lifecycle.MACHINES, lifecycle.INSTANCES) or not request.name:
        return None
    return lifecycle.method_of(request.plural, "/".join((request.subresource, *request.rest)))


def _decide_own(name: str, what: str, instance: Object | None) -> Decision:
    """Our own questions about a running machine: the hypervisor's description of it, and its counters."""
    if instance is None:
        raise not_found(register.VIRTUAL_MACHINE_INSTANCE.singular, name, register.VIRTUAL_MACHINE_INSTANCE.group)
    if (instance.get("status") or {}).get("phase") != "Running":
        raise conflict_because(name, "VMI is not running")
    return Decision(code=200, agent=what)


def conflict_because(name: str, why: str) -> ApiError:
    """409 in KubeVirt's words for a machine that is not in the state needed."""
    resource = register.VIRTUAL_MACHINE_INSTANCE
    text = f'Operation cannot be fulfilled on {resource.singular}.{resource.group} "{name}": {why}'
    return ApiError("Conflict", text, {"name": name, "group": resource.group, "kind": resource.singular})


def _typed(what: str, body: Object | None) -> Object | None:
    """The options of a call, their types checked. Raises 400 as KubeVirt's decoder does."""
    struct = _OPTIONS.get(what)
    if struct is None or body is None:
        return body
    try:
        msgspec.convert(body, struct)
    except msgspec.ValidationError as error:
        raise ApiError("BadRequest", f"Can not unmarshal Request body to struct, error: json: {error}") from error
    return body


def _agent_path(namespace: str, name: str, what: str) -> str:
    quoted = (urllib.parse.quote(namespace, safe=""), urllib.parse.quote(name, safe=""))
    return f"/v1/namespaces/{quoted[0]}/machines/{quoted[1]}/{what}"

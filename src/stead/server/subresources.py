"""KubeVirt's subresource API: start, stop, pause, console, vnc and the rest, for machines and instances.

Called by `app` for group `subresources.kubevirt.io`, after authorisation. What a call does is decided by
`server.lifecycle` (pure); this module reads the objects, carries the decision out (patches through `verbs`, calls and
streams through `agents`) and answers as KubeVirt does: 202 with an empty body for what changes something, JSON or an
image for questions, a WebSocket for streams. Follows Z1 and Z2.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from stead import __version__
from stead.kinds import register
from stead.kinds.resource import Resource
from stead.kube import encoding, patch
from stead.kube.errors import ApiError
from stead.server import lifecycle, mutation
from stead.server.admission.cluster import cluster_from_lookup
from stead.server.agents import Agents
from stead.server.answer import Answer, json_answer, text_answer
from stead.server.authn import MASTERS, User
from stead.server.bodies import media_type, read_body
from stead.server.calls import Call, Options
from stead.server.health import version_info
from stead.server.lifecycle import Decision
from stead.server.lookup import MemoryLookup
from stead.server.verbs import Verbs

if TYPE_CHECKING:
    from stead.server.app import Exchange

Object = dict[str, Any]

#: who writes on a caller's behalf: RBAC was asked about the subresource, not about the object
SERVER = User(
    "system:serviceaccount:kubevirt:kubevirt-apiserver",
    groups=("system:serviceaccounts", "system:serviceaccounts:kubevirt", "system:authenticated", MASTERS),
)
_UNDERWAY = "unable to complete request: stop/start already underway"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a call is about: the objects as they stand (None: absent) and the request's parts."""

    name: str
    namespace: str
    machine: Object | None
    instance: Object | None
    body: Object | None
    rest: tuple[str, ...]
    exchange: Any


Decider = Callable[[Target], Decision]


def _port(target: Target) -> tuple[int, str]:
    text = target.rest[0] if target.rest else ""
    port = int(text) if text.isdigit() else 0
    if not 0 < port < 65536:
        raise ApiError("BadRequest", f"{text!r} is no port number")
    return port, target.rest[1] if len(target.rest) > 1 else "tcp"


def _preserve(target: Target) -> bool:
    return bool(target.exchange.request.query.flag("preserveSession"))


#: PUT and GET calls on a VirtualMachine
_MACHINE: dict[tuple[str, str], Decider] = {
    ("PUT", "start"): lambda t: lifecycle.decide_start(t.name, t.machine, t.instance, t.body),
    ("PUT", "stop"): lambda t: lifecycle.decide_stop(t.name, t.machine, t.instance, t.body),
    ("PUT", "restart"): lambda t: lifecycle.decide_restart(t.name, t.machine, t.instance, t.body),
    ("PUT", "migrate"): lambda t: lifecycle.decide_migrate(t.name, t.machine, t.instance, t.body, False),
    ("PUT", "addvolume"): lambda t: lifecycle.decide_add_volume(t.name, t.machine, t.body),
    ("PUT", "removevolume"): lambda t: lifecycle.decide_remove_volume(t.name, t.machine, t.body),
    ("PUT", "memorydump"): lambda t: lifecycle.decide_memory_dump(t.name, t.machine, t.instance),
    ("PUT", "removememorydump"): lambda t: lifecycle.decide_remove_memory_dump(t.name, t.machine, t.body),
    ("PUT", "evacuate/cancel"): lambda t: lifecycle.decide_cancel_evacuation(
        t.name, t.instance, t.body, t.machine, of_machine=True
    ),
    ("GET", "portforward"): lambda t: lifecycle.decide_machine_port_forward(t.name, t.machine, t.instance, *_port(t)),
}  # fmt: skip

#: PUT and GET calls on a VirtualMachineInstance
_INSTANCE: dict[tuple[str, str], Decider] = {
    ("PUT", "pause"): lambda t: lifecycle.decide_pause(t.name, t.instance, t.body),
    ("PUT", "unpause"): lambda t: lifecycle.decide_unpause(t.name, t.instance, t.body, t.machine),
    ("PUT", "freeze"): lambda t: lifecycle.decide_freeze(t.name, t.instance, t.body),
    ("PUT", "unfreeze"): lambda t: lifecycle.decide_unfreeze(t.name, t.instance),
    ("PUT", "softreboot"): lambda t: lifecycle.decide_soft_reboot(t.name, t.instance),
    ("PUT", "reset"): lambda t: lifecycle.decide_reset(t.name, t.instance),
    ("PUT", "addvolume"): lambda t: lifecycle.decide_add_instance_volume(t.name, t.instance, t.body),
    ("PUT", "removevolume"): lambda t: lifecycle.decide_remove_instance_volume(t.name, t.instance, t.body),
    ("PUT", "backup"): lambda t: lifecycle.decide_backup(t.name, t.instance),
    ("PUT", "redefine-checkpoint"): lambda t: lifecycle.decide_redefine_checkpoint(t.name, t.instance),
    ("PUT", "evacuate/cancel"): lambda t: lifecycle.decide_cancel_evacuation(t.name, t.instance, t.body),
    ("GET", "guestosinfo"): lambda t: lifecycle.decide_guest_information(t.name, t.instance, "guestosinfo"),
    ("GET", "userlist"): lambda t: lifecycle.decide_guest_information(t.name, t.instance, "userlist"),
    ("GET", "filesystemlist"): lambda t: lifecycle.decide_guest_information(t.name, t.instance, "filesystemlist"),
    ("GET", "vnc/screenshot"): lambda t: lifecycle.decide_screenshot(t.name, t.instance),
    ("GET", "console"): lambda t: lifecycle.decide_console(t.name, t.instance),
    ("GET", "vnc"): lambda t: lifecycle.decide_vnc(t.name, t.instance, _preserve(t)),
    ("GET", "usbredir"): lambda t: lifecycle.decide_usb_redirection(t.name, t.instance),
    ("GET", "vsock"): lambda t: lifecycle.decide_vsock(t.name, t.instance),
    ("GET", "portforward"): lambda t: lifecycle.decide_port_forward(t.name, t.instance, *_port(t)),
    ("GET", "sev/fetchcertchain"): lambda t: lifecycle.decide_sev(t.name, t.instance, "fetchcertchain"),
    ("GET", "sev/querylaunchmeasurement"): lambda t: lifecycle.decide_sev(t.name, t.instance, "querylaunchmeasurement"),
    ("PUT", "sev/setupsession"): lambda t: lifecycle.decide_sev(t.name, t.instance, "setupsession", t.body),
    ("PUT", "sev/injectlaunchsecret"): lambda t: lifecycle.decide_sev(t.name, t.instance, "injectlaunchsecret", t.body),
}  # fmt: skip


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
        body = await self._body(exchange) if request.method == "PUT" else None
        decision = self._decide(exchange, body)
        if decision is None:
            return text_answer("404: Page Not Found", 404)
        if decision.streams:
            token = "'upgrade' token not found in 'Connection' header"  # noqa: S105 - no secret
            raise ApiError("BadRequest", f"websocket: the client is not using the websocket protocol: {token}")
        return await self._carry_out(exchange, decision)

    async def websocket(self, exchange: Exchange) -> None:
        """Join a client's WebSocket with its guest. Errors before the upgrade are raised."""
        decision = self._decide(exchange, None) if exchange.request.namespace else None
        if decision is None or not decision.streams:
            raise ApiError("NotFound", "the server could not find the requested resource", {})
        request = exchange.request
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
        if what == "guestfs":
            raise ApiError("NotFound", "no libguestfs image is configured: attach the disk to a machine instead", {})
        return text_answer("404: Page Not Found", 404)

    def _decide(self, exchange: Exchange, body: Object | None) -> Decision | None:
        """The decision about a request; None when there is no such subresource."""
        request = exchange.request
        cluster = cluster_from_lookup(self._lookup)
        if request.plural == "expand-vm-spec":
            if request.method != "PUT":
                return None
            if body is None:
                raise ApiError("UnsupportedMediaType", "no VirtualMachine in the body of the request")
            return lifecycle.decide_expand_body(body, cluster, request.namespace)
        target = self._target(exchange, body)
        graph = "ObjectGraph" in self._lookup.gates()
        key = (request.method, request.subresource)
        if request.plural == "virtualmachines":
            if key == ("GET", "expand-spec"):
                return lifecycle.decide_expand(target.name, target.machine, cluster, target.namespace)
            if key == ("GET", "objectgraph"):
                return lifecycle.decide_machine_graph(target.name, target.machine, graph)
            decide = _MACHINE.get(key)
        elif request.plural == "virtualmachineinstances":
            if key == ("GET", "objectgraph"):
                return lifecycle.decide_instance_graph(target.name, target.instance, graph)
            decide = _INSTANCE.get(key)
        else:
            return None
        return decide(target) if decide is not None else None

    def _target(self, exchange: Exchange, body: Object | None) -> Target:
        request, registry = exchange.request, self._verbs.registry
        return Target(
            name=request.name, namespace=request.namespace, body=body, rest=request.rest, exchange=exchange,
            machine=registry.peek(register.VIRTUAL_MACHINE, request.namespace, request.name),
            instance=registry.peek(register.VIRTUAL_MACHINE_INSTANCE, request.namespace, request.name),
        )  # fmt: skip

    async def _body(self, exchange: Exchange) -> Object | None:
        raw = await read_body(exchange.receive, exchange.headers)
        if not raw.strip():
            return None
        try:
            value = encoding.decode(raw, media_type(exchange.headers) or "application/json").value
        except encoding.DecodeError as error:
            raise ApiError("BadRequest", f"Can not unmarshal Request body to struct, error: {error}") from error
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
        if decision.migration is not None:
            raise ApiError("BadRequest", "this server does not migrate machines yet")
        if not decision.agent or dry_run:
            if decision.body is not None:
                return json_answer(decision.body, decision.code)
            return Answer(decision.code, b"", "")
        return await self._ask(exchange, decision)

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


def _agent_path(namespace: str, name: str, what: str) -> str:
    quoted = (urllib.parse.quote(namespace, safe=""), urllib.parse.quote(name, safe=""))
    return f"/v1/namespaces/{quoted[0]}/machines/{quoted[1]}/{what}"

"""Which decision answers which subresource path: the one table that the server and the replay of recordings share.

`decide` takes a call with everything that a decision may look at. Unknown subresources are 404s in text/plain, as
upstream's router answers. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from stead.server.admission.cluster import Cluster
from stead.server.lifecycle import expand, graph, guest, power, volumes
from stead.server.lifecycle.contract import Decision, Json, PlainError, bad_request

MACHINES = "virtualmachines"
INSTANCES = "virtualmachineinstances"
EXPAND = "expand-vm-spec"


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One subresource call. `plural` is MACHINES, INSTANCES or EXPAND; `path` what follows the name, e.g. `start`,
    `portforward/22/tcp`. `machine` and `instance` are the objects of that name, None if there are none; for an
    instance, `machine` is its owner. `preserve_session` is the query parameter of `vnc`.
    """

    plural: str
    namespace: str
    name: str
    path: str
    cluster: Cluster
    body: Json | None = None
    machine: Json | None = None
    instance: Json | None = None
    preserve_session: bool = False


_Decider = Callable[[Call], Decision]

_MACHINE_CALLS: dict[str, _Decider] = {
    "start": lambda c: power.decide_start(c.name, c.machine, c.instance, c.body),
    "stop": lambda c: power.decide_stop(c.name, c.machine, c.instance, c.body),
    "restart": lambda c: power.decide_restart(c.name, c.machine, c.instance, c.body),
    "migrate": lambda c: power.decide_migrate(c.name, c.machine, c.instance, c.body),
    "evacuate/cancel": lambda c: power.decide_cancel_evacuation(c.name, c.instance, c.body, c.machine, of_machine=True),
    "addvolume": lambda c: volumes.decide_add_volume(c.name, c.machine, c.body),
    "removevolume": lambda c: volumes.decide_remove_volume(c.name, c.machine, c.body),
    "memorydump": lambda c: volumes.decide_memory_dump(c.name, c.machine, c.instance),
    "removememorydump": lambda c: volumes.decide_remove_memory_dump(c.name, c.machine, c.body),
    "expand-spec": lambda c: expand.decide_expand(c.name, c.machine, c.cluster, c.namespace),
    "objectgraph": lambda c: graph.decide_machine_graph(c.name, c.machine, c.cluster.has("ObjectGraph")),
}

_INSTANCE_CALLS: dict[str, _Decider] = {
    "pause": lambda c: guest.decide_pause(c.name, c.instance, c.body),
    "unpause": lambda c: guest.decide_unpause(c.name, c.instance, c.body, c.machine),
    "freeze": lambda c: guest.decide_freeze(c.name, c.instance, c.body),
    "unfreeze": lambda c: guest.decide_unfreeze(c.name, c.instance),
    "softreboot": lambda c: guest.decide_soft_reboot(c.name, c.instance),
    "reset": lambda c: guest.decide_reset(c.name, c.instance),
    "evacuate/cancel": lambda c: power.decide_cancel_evacuation(c.name, c.instance, c.body),
    "addvolume": lambda c: volumes.decide_add_instance_volume(c.name, c.instance, c.body),
    "removevolume": lambda c: volumes.decide_remove_instance_volume(c.name, c.instance, c.body),
    "guestosinfo": lambda c: guest.decide_guest_information(c.name, c.instance, c.path),
    "userlist": lambda c: guest.decide_guest_information(c.name, c.instance, c.path),
    "filesystemlist": lambda c: guest.decide_guest_information(c.name, c.instance, c.path),
    "console": lambda c: guest.decide_console(c.name, c.instance),
    "vnc": lambda c: guest.decide_vnc(c.name, c.instance, c.preserve_session),
    "vnc/screenshot": lambda c: guest.decide_screenshot(c.name, c.instance),
    "usbredir": lambda c: guest.decide_usb_redirection(c.name, c.instance),
    "vsock": lambda c: guest.decide_vsock(c.name, c.instance),
    "objectgraph": lambda c: graph.decide_instance_graph(c.name, c.instance, c.cluster.has("ObjectGraph")),
    "backup": lambda c: guest.decide_backup(c.name, c.instance),
    "redefine-checkpoint": lambda c: guest.decide_redefine_checkpoint(c.name, c.instance),
    "sev/fetchcertchain": lambda c: guest.decide_sev(c.name, c.instance, "fetchcertchain"),
    "sev/querylaunchmeasurement": lambda c: guest.decide_sev(c.name, c.instance, "querylaunchmeasurement"),
    "sev/setupsession": lambda c: guest.decide_sev(c.name, c.instance, "setupsession", c.body),
    "sev/injectlaunchsecret": lambda c: guest.decide_sev(c.name, c.instance, "injectlaunchsecret", c.body),
}

#: calls made with GET; all others are PUT
_READS = frozenset(
    (
        "expand-spec", "objectgraph", "guestosinfo", "userlist", "filesystemlist", "console", "vnc", "vnc/screenshot",
        "usbredir", "vsock", "sev/fetchcertchain", "sev/querylaunchmeasurement",
    )
)  # fmt: skip


def method_of(plural: str, path: str) -> str | None:
    """The HTTP method of a subresource: GET or PUT; None if there is no such subresource."""
    if plural == EXPAND:
        return "PUT"
    if path.partition("/")[0] == "portforward":
        return "GET"
    if path not in (_MACHINE_CALLS if plural == MACHINES else _INSTANCE_CALLS):
        return None
    return "GET" if path in _READS else "PUT"


def decide(call: Call) -> Decision:
    """What a call does. Raises ApiError, and PlainError for what is answered as text/plain."""
    if call.plural == EXPAND:
        return expand.decide_expand_body(call.body or {}, call.cluster, call.namespace)
    word, _, rest = call.path.partition("/")
    if word == "portforward":
        return _decide_port_forward(call, rest)
    decider = (_MACHINE_CALLS if call.plural == MACHINES else _INSTANCE_CALLS).get(call.path)
    if decider is None:
        raise PlainError("", "404: Page Not Found", code=404)
    return decider(call)


def _decide_port_forward(call: Call, rest: str) -> Decision:
    number, _, protocol = rest.partition("/")
    if not number.isdecimal() or len(number) > 5:
        raise bad_request(f"invalid port: {number}")
    if call.plural == MACHINES:
        return guest.decide_machine_port_forward(call.name, call.machine, call.instance, int(number), protocol or "tcp")
    return guest.decide_port_forward(call.name, call.instance, int(number), protocol or "tcp")

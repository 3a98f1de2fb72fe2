"""What each subresource of machines and instances does, decided without doing it.

The server reads the machine and its instance from memory, calls `decide`, and carries out the `Decision`: JSON patches,
a call to the agent, or a stream. Refusals are raised as `ApiError` with the codes and texts that KubeVirt
answers; `PlainError` is answered as text/plain. All functions are pure and take None for an object that does not exist.
"""

from __future__ import annotations

from stead.server.lifecycle.contract import Decision, PlainError
from stead.server.lifecycle.expand import decide_expand, decide_expand_body
from stead.server.lifecycle.graph import decide_instance_graph, decide_machine_graph
from stead.server.lifecycle.guest import (
    GUEST_INFORMATION,
    decide_backup,
    decide_console,
    decide_freeze,
    decide_guest_information,
    decide_machine_port_forward,
    decide_pause,
    decide_port_forward,
    decide_redefine_checkpoint,
    decide_reset,
    decide_screenshot,
    decide_sev,
    decide_soft_reboot,
    decide_unfreeze,
    decide_unpause,
    decide_usb_redirection,
    decide_vnc,
    decide_vsock,
)
from stead.server.lifecycle.power import (
    decide_cancel_evacuation,
    decide_migrate,
    decide_restart,
    decide_start,
    decide_stop,
)
from stead.server.lifecycle.routes import EXPAND, INSTANCES, MACHINES, Call, decide, method_of
from stead.server.lifecycle.volumes import (
    decide_add_instance_volume,
    decide_add_volume,
    decide_memory_dump,
    decide_remove_instance_volume,
    decide_remove_memory_dump,
    decide_remove_volume,
)

__all__ = [
    "EXPAND",
    "GUEST_INFORMATION",
    "INSTANCES",
    "MACHINES",
    "Call",
    "Decision",
    "PlainError",
    "decide",
    "decide_add_instance_volume",
    "decide_add_volume",
    "decide_backup",
    "decide_cancel_evacuation",
    "decide_console",
    "decide_expand",
    "decide_expand_body",
    "decide_freeze",
    "decide_guest_information",
    "decide_instance_graph",
    "decide_machine_graph",
    "decide_machine_port_forward",
    "decide_memory_dump",
    "decide_migrate",
    "decide_pause",
    "decide_port_forward",
    "decide_redefine_checkpoint",
    "decide_remove_instance_volume",
    "decide_remove_memory_dump",
    "decide_remove_volume",
    "decide_reset",
    "decide_restart",
    "decide_screenshot",
    "decide_sev",
    "decide_soft_reboot",
    "decide_start",
    "decide_stop",
    "decide_unfreeze",
    "decide_unpause",
    "decide_usb_redirection",
    "decide_vnc",
    "decide_vsock",
    "method_of",
]

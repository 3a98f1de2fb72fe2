"""What a host that has joined a Stead elsewhere can tell of itself, and whether it may leave.

Called by `cli/hosts` for `stead status` and `stead uninstall`. All is asked with the host's own certificate, which may
read its Node and its machines.
"""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

import click
import msgspec

from stead import installation
from stead.client.contract import Object, Selection
from stead.client.direct import DirectClient
from stead.client.kubeconfig import Endpoint
from stead.config import Settings
from stead.kinds import register
from stead.kube.errors import ApiError

#: what the agent says of its hypervisor, as JSON on its Node
CAPABILITIES = "stead.io/capabilities"


async def observe(settings: Settings, state: dict[str, Any]) -> None:
    """What a host without a plane can tell, by its own certificate: itself and its machines."""
    files = installation.Files.of(settings)
    try:
        endpoint = Endpoint(
            server=settings.url,
            ca=files.ca.read_bytes(),
            certificate=files.agent.certificate.read_bytes(),
            key=files.agent.key.read_bytes(),
        )
    except OSError as error:
        state["message"] = f"{error.filename}: {error.strerror}: run as root, or `stead join` has not run yet"
        return
    client = DirectClient(endpoint)
    try:
        async with asyncio.timeout(10):
            node = await client.get(register.NODE, None, settings.host)
            note_host(state, node, settings)
            state["ready"] = state["hosts"][0]["ready"] and await has_fresh_beat(client, settings)
            mine = Selection(labels=f"kubevirt.io/nodeName={settings.host}")
            for instance in (await client.list(register.VIRTUAL_MACHINE_INSTANCE, mine)).items:
                phase = instance.get("status", {}).get("phase", "Unknown")
                state["machines"][phase] = state["machines"].get(phase, 0) + 1
        state["message"] = "" if state["ready"] else f"host {settings.host} is not ready yet"
    except ApiError as error:
        removed = f"{settings.url} does not know this host (any more): `stead join` lets it in again"
        state["message"] = removed if error.code == 401 else error.message
    except Exception as error:  # as in `_state`
        state["message"] = f"the API does not answer: {error or type(error).__name__}"
    finally:
        await client.close()


def note_host(state: dict[str, Any], node: Object, settings: Settings) -> None:
    """One host into `state`."""
    conditions = node.get("status", {}).get("conditions", [])
    ready: dict[str, Any] = next((c for c in conditions if c["type"] == "Ready"), {})
    name = node["metadata"]["name"]
    capabilities = msgspec.json.decode(node["metadata"].get("annotations", {}).get(CAPABILITIES, "{}"))
    if name == settings.host and capabilities.get("software_emulation"):
        state["emulation"] = capabilities.get("software_emulation_reason") or "no KVM"
    found = {"name": name, "ready": ready.get("status") == "True", "message": ready.get("message", "")}
    state["hosts"].append(found)


async def has_fresh_beat(client: DirectClient, settings: Settings) -> bool:
    """Whether the agent that runs now has reported since its start: what an earlier one said proves nothing."""
    begun = installation.started_at(settings, "agent")
    try:
        lease = await client.get(register.LEASE, "kube-node-lease", settings.host)
    except ApiError as error:
        if error.reason != "NotFound":
            raise
        return False
    moment = datetime.datetime.fromisoformat(lease["spec"]["renewTime"]).timestamp()
    return bool(begun) and moment >= begun


def check_empty(settings: Settings, state: dict[str, Any]) -> None:
    """Raises click.ClickException unless the host is known to run no machine of its Stead. `state`: by `observe`."""
    if any(count for phase, count in state["machines"].items() if phase not in ("Succeeded", "Failed")):
        raise click.ClickException(
            f"machines are bound to this host: `stead host drain {settings.host}` at {settings.url} first"
        )
    if not state["hosts"] and "does not know this host" not in state["message"] and settings.agent_dir.exists():
        raise click.ClickException(
            f"{state['message']}; what runs here is not known. At {settings.url}: `stead host remove {settings.host}`"
        )

"""`stead host …`: the hosts of this Stead, as administrators see and tend them. Nodes, in Kubernetes' words.

Cordon is `spec.unschedulable`; drain adds KubeVirt's taint `kubevirt.io/drain`, by which machines that can move are
moved, and shuts down the others that may be; maintenance is a drain that is marked and stays. `confirm-dead` sets the
taint with which Kubernetes is told that a host is off: from then on its machines may start elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from typing import Any

import click

from stead.cli import output
from stead.cli.session import Session, command, current_options, open_session
from stead.client.contract import Object, Selection
from stead.kinds import machine_needs, register
from stead.kinds.hosts import (
    DRAIN_TAINT,
    MAINTENANCE,
    OUT_OF_SERVICE_TAINT,
    decide_leaving,
    is_cordoned,
    ready_condition,
    taints_with,
    taints_without,
)
from stead.kube import meta
from stead.kube.errors import ApiError
from stead.kube.quantity import parse

_VMI = register.VIRTUAL_MACHINE_INSTANCE
_FORM = click.option("-o", "--output", "form", type=output.FORMATS, default="table")
_HEADERS = ["NAME", "STATUS", "MACHINES", "CPU", "MEMORY", "HYPERVISOR", "ADDRESS", "AGE"]
_COMPLETION_SECONDS = 2.0


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of hosts for the shell; none when the API does not answer soon."""

    async def names() -> list[str]:
        options = current_options()
        async with asyncio.timeout(_COMPLETION_SECONDS), open_session(options, options.settings()) as session:
            return [node["metadata"]["name"] for node in (await session.client.list(register.NODE)).items]

    with contextlib.suppress(Exception):
        return [name for name in asyncio.run(names()) if name.startswith(incomplete)]
    return []


_NAME = click.argument("name", shell_complete=_complete)


@click.group()
def host() -> None:
    """The hosts of this Stead: look, empty, take out, let back in."""


@host.command("list")
@click.option("-l", "--selector", default="", help="Label selector.")
@_FORM
@command
async def list_hosts(session: Session, selector: str, form: str) -> None:
    """All hosts with what runs on them. CPU and memory: taken by machines / offered."""
    nodes = (await session.client.list(register.NODE, Selection(labels=selector))).items
    if form in ("json", "yaml", "name"):
        output.print_objects(nodes, form)
        return
    running = await _instances(session)
    headers = [*_HEADERS, "VERSION", "POOLS"] if form == "wide" else _HEADERS
    rows = [_row(node, running.get(node["metadata"]["name"], []), wide=form == "wide") for node in nodes]
    click.echo(output.table(headers, rows) if rows else "No hosts.")


@host.command("info")
@_NAME
@_FORM
@command
async def info(session: Session, name: str, form: str) -> None:
    """Everything worth knowing of one host: room, hypervisor, pools, conditions, machines."""
    node = await _node(session, name)
    if form in ("json", "yaml", "name"):
        output.print_objects([node], form, single=True)
        return
    machines = (await _instances(session)).get(name, [])
    row = dict(zip([*_HEADERS, "VERSION", "POOLS"], _row(node, machines, wide=True), strict=True))
    told = node.get("status", {}).get("nodeInfo", {})
    facts = [*((key.capitalize() if key != "CPU" else key, row[key]) for key in row)]
    facts += [("System", f"{told.get('osImage', '')}, kernel {told.get('kernelVersion', '')}")]
    taints = ", ".join(f"{t.get('key')}:{t.get('effect')}" for t in node.get("spec", {}).get("taints") or [])
    facts += [("Taints", taints), ("Zone", node["metadata"].get("labels", {}).get("topology.kubernetes.io/zone"))]
    width = max(len(title) for title, _ in facts)
    for title, value in facts:
        click.echo(f"{title + ':':<{width + 2}}{value if value not in (None, '') else '-'}")
    conditions = node.get("status", {}).get("conditions", [])
    click.echo("\nConditions")
    rows = [
        [c["type"], c["status"], c.get("reason"), c.get("lastTransitionTime"), c.get("message")] for c in conditions
    ]
    click.echo(output.table(["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"], rows))
    if machines:
        click.echo("\nMachines")
        rows = [[_label(vmi), vmi.get("status", {}).get("phase"), *decide_leaving(vmi)] for vmi in machines]
        click.echo(output.table(["MACHINE", "PHASE", "WHEN DRAINED", "BECAUSE"], rows))


@host.command("cordon")
@_NAME
@command
async def cordon(session: Session, name: str) -> None:
    """Place no more machines on a host. Those that run there go on."""
    node = await _node(session, name)
    if is_cordoned(node):
        click.echo(f"host {name} is cordoned already")
        return
    await _patch(session, node, {"spec": {"unschedulable": True}})
    click.echo(f"host {name} cordoned")


@host.command("uncordon")
@_NAME
@command
async def uncordon(session: Session, name: str) -> None:
    """Let a host have machines again: ends cordon, drain, maintenance and confirm-dead."""
    await _reopen(session, name)


@host.command("drain")
@_NAME
@click.option("--timeout", default=600, show_default=True, help="Seconds to wait until the host is empty.")
@click.option("--keep-unmovable", is_flag=True, help="Shut down nothing: move what can move, leave the rest.")
@command
async def drain(session: Session, name: str, timeout: int, keep_unmovable: bool) -> None:
    """Empty a host: move machines that can move, shut down those whose eviction strategy allows it."""
    await _drain(session, await _node(session, name), timeout, keep_unmovable)


@host.command("maintenance")
@_NAME
@click.option("--off", is_flag=True, help="End it: as `stead host uncordon`.")
@click.option("--timeout", default=600, show_default=True, help="Seconds to wait until the host is empty.")
@command
async def maintenance(session: Session, name: str, off: bool, timeout: int) -> None:
    """Empty a host and keep it empty until `--off`; `stead host list` shows it as in maintenance."""
    if off:
        await _reopen(session, name)
        return
    node = await _node(session, name)
    await _patch(session, node, {"metadata": {"annotations": {MAINTENANCE: meta.now()}}})
    await _drain(session, node, timeout, keep=False)
    click.echo(f"host {name} is in maintenance; `stead host maintenance {name} --off` ends it")


@host.command("remove")
@_NAME
@click.option("--force", is_flag=True, help="Although machines or volumes are bound to it, which are lost to us then.")
@command
async def remove(session: Session, name: str, force: bool) -> None:
    """Forget a host for good: its certificate counts no more; it must join again to come back."""
    node = await _node(session, name)
    machines = (await _instances(session)).get(name, [])
    volumes = [pv for pv in (await session.client.list(register.PERSISTENT_VOLUME)).items if name in _hosts_of(pv)]
    if (machines or volumes) and not force:
        raise click.ClickException(
            f"{len(machines)} machines and {len(volumes)} volumes are bound to host {name}: "
            f"`stead host drain {name}`, delete the volumes, or add --force"
        )
    await session.client.delete(register.NODE, None, name, uid=node["metadata"]["uid"])
    with contextlib.suppress(ApiError):
        await session.client.delete(register.LEASE, "kube-node-lease", name)
    click.echo(f"host {name} removed; on the host itself: stead uninstall")


@host.command("confirm-dead")
@_NAME
@click.option("--yes", is_flag=True, help="Do not ask. You vouch that the host is off, or cut off from its disks.")
@command
async def confirm_dead(session: Session, name: str, yes: bool) -> None:
    """Vouch that a silent host is off. Its machines on shared pools start elsewhere; if it still runs, disks break."""
    node = await _node(session, name)
    if ready_condition(node).get("status") == "True":
        raise click.ClickException(f"host {name} answers: it is not dead")
    if not yes and click.prompt(f"Type the host's name if it is surely off ({name})", default="") != name:
        raise click.ClickException("nothing was changed")
    await _patch(session, node, {"spec": {"taints": taints_with(node, OUT_OF_SERVICE_TAINT)}})
    click.echo(f"host {name} counts as dead; `stead host uncordon {name}` when it is back")


async def _reopen(session: Session, name: str) -> None:
    """See `uncordon`."""
    node = await _node(session, name)
    taints = taints_without(node, DRAIN_TAINT["key"], OUT_OF_SERVICE_TAINT["key"])
    annotations = {"metadata": {"annotations": {MAINTENANCE: None}}}
    await _patch(session, node, {**annotations, "spec": {"unschedulable": None, "taints": taints or None}})
    click.echo(f"host {name} takes machines again")


async def _drain(session: Session, node: Object, timeout: int, keep: bool) -> None:
    """See `drain`. Raises click.ClickException when machines remain."""
    name = node["metadata"]["name"]
    await _patch(session, node, {"spec": {"unschedulable": True, "taints": taints_with(node, DRAIN_TAINT)}})
    asked: set[str] = set()
    deadline = asyncio.get_running_loop().time() + timeout
    with output.Progress(f"drain {name}") as progress:
        while True:
            here = [vmi for vmi in (await _instances(session)).get(name, []) if not _is_final(vmi)]
            plans = [(vmi, *decide_leaving(vmi)) for vmi in here]
            for vmi, how, _ in plans:
                if how == "shut down" and not keep and vmi["metadata"]["uid"] not in asked:
                    asked.add(vmi["metadata"]["uid"])
                    await _shut_down(session, vmi)
            left = [p for p in plans if p[1] == "move" or (p[1] == "shut down" and not keep)]
            if not left or asyncio.get_running_loop().time() > deadline:
                break
            progress.show(f"{len(left)} machines to go: {', '.join(_label(vmi) for vmi, _, _ in left[:3])}")
            await asyncio.sleep(0.5)
    if plans:
        lines = "\n".join(f"  {_label(vmi)}: {how}: {why}" for vmi, how, why in plans)
        raise click.ClickException(f"host {name} is cordoned, but machines remain:\n{lines}")
    click.echo(f"host {name} is empty and cordoned")


async def _shut_down(session: Session, vmi: Object) -> None:
    metadata = vmi["metadata"]
    try:
        await session.client.delete(_VMI, metadata["namespace"], metadata["name"], uid=metadata["uid"])
    except ApiError as error:
        if error.reason not in ("NotFound", "Conflict"):
            raise


async def _node(session: Session, name: str) -> Object:
    try:
        return await session.client.get(register.NODE, None, name)
    except ApiError as error:
        if error.reason != "NotFound":
            raise
        known = [node["metadata"]["name"] for node in (await session.client.list(register.NODE)).items]
        raise click.ClickException(f"there is no host {name}; there are: {', '.join(known) or 'none'}") from error


async def _patch(session: Session, node: Object, patch: Object) -> None:
    """A merge patch that is refused when the Node changed its taints since we read it; the caller may run again."""
    fresh = await session.client.get(register.NODE, None, node["metadata"]["name"])
    if "taints" in patch.get("spec", {}) and fresh.get("spec", {}).get("taints") != node.get("spec", {}).get("taints"):
        raise click.ClickException("somebody else changed the host's taints at this moment: try again")
    guard = {"resourceVersion": fresh["metadata"]["resourceVersion"]} if "taints" in patch.get("spec", {}) else {}
    body = {**patch, "metadata": {**patch.get("metadata", {}), **guard}}
    node.update(await session.client.patch(register.NODE, None, node["metadata"]["name"], body))


async def _instances(session: Session) -> dict[str, list[Object]]:
    """Instances by host."""
    found: dict[str, list[Object]] = {}
    for vmi in (await session.client.list(_VMI)).items:
        bound = vmi.get("status", {}).get("nodeName")
        if bound:
            found.setdefault(bound, []).append(vmi)
    return found


def _is_final(vmi: Object) -> bool:
    return vmi.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _label(vmi: Object) -> str:
    return f"{vmi['metadata'].get('namespace')}/{vmi['metadata']['name']}"


def _hosts_of(volume: Object) -> set[str]:
    """Hosts that a volume is bound to."""
    terms = ((volume.get("spec", {}).get("nodeAffinity") or {}).get("required") or {}).get("nodeSelectorTerms") or []
    expressions = [e for term in terms for e in term.get("matchExpressions") or []]
    return {value for e in expressions if e.get("key") == "kubernetes.io/hostname" for value in e.get("values") or []}


def status_text(node: Object, now: datetime.datetime | None = None) -> str:
    """`Ready`, `NotReady`, `Unknown for 5m`, with what an administrator has set on the host."""
    ready = ready_condition(node)
    text = {"True": "Ready", "False": "NotReady"}.get(ready.get("status", ""), "Unknown")
    if text != "Ready" and ready.get("lastTransitionTime"):
        text += f" for {output.age(ready['lastTransitionTime'], now)}"
    if any(taint.get("key") == OUT_OF_SERVICE_TAINT["key"] for taint in node.get("spec", {}).get("taints") or []):
        text += ",ConfirmedDead"
    if MAINTENANCE in (node["metadata"].get("annotations") or {}):
        return f"{text},Maintenance"
    return f"{text},SchedulingDisabled" if is_cordoned(node) else text


def _row(node: Object, machines: list[Object], *, wide: bool) -> list[Any]:
    status, metadata = node.get("status", {}), node["metadata"]
    offered = status.get("allocatable") or {}
    alive = [vmi for vmi in machines if not _is_final(vmi)]
    cpu = sum(machine_needs.machine_cpu_milli(vmi) for vmi in alive) / 1000
    memory = sum(machine_needs.machine_memory(vmi) for vmi in alive)
    addresses = [a["address"] for a in status.get("addresses") or [] if a.get("type") == "InternalIP"]
    told = status.get("nodeInfo") or {}
    row = [
        metadata["name"], status_text(node), len(alive), f"{cpu:g}/{offered.get('cpu', '?')}",
        f"{output.size(memory)}/{output.size(int(parse(offered['memory']))) if 'memory' in offered else '?'}",
        str(told.get("containerRuntimeVersion", "")).removeprefix("stead://"), ", ".join(addresses),
        output.age(metadata.get("creationTimestamp")),
    ]  # fmt: skip
    if wide:
        pools = [key.partition("/")[2] for key in metadata.get("labels") or {} if key.startswith("pool.stead.io/")]
        row += [told.get("kubeletVersion", ""), ", ".join(sorted(pools))]
    return row

"""`stead list|info|xml|start|stop|restart|pause|…|top`: machines by their names, in the words of virsh and virtctl."""

from __future__ import annotations

import re
from typing import Any

import click

from stead.cli import output
from stead.cli.session import Session, command
from stead.client.contract import Object, Selection
from stead.kinds import register
from stead.kube.errors import ApiError

_HEADERS = ["NAME", "STATUS", "CPU", "MEMORY", "ADDRESS", "HOST", "AGE"]


@click.command("list")
@click.option("-A", "--all-namespaces", is_flag=True)
@click.option("-l", "--selector", default="", help="Label selector.")
@click.option("-o", "--output", "form", type=output.FORMATS, default="table")
@command
async def list_machines(session: Session, all_namespaces: bool, selector: str, form: str) -> None:
    """All machines, stopped ones too."""
    selection = Selection(None if all_namespaces else session.namespace, selector)
    machines = (await session.client.list(register.VIRTUAL_MACHINE, selection)).items
    if form in ("json", "yaml", "name"):
        output.print_objects(machines, form)
        return
    running = (await session.client.list(register.VIRTUAL_MACHINE_INSTANCE, Selection(selection.namespace))).items
    instances = {(item["metadata"].get("namespace"), item["metadata"]["name"]): item for item in running}
    rows = []
    for machine in machines:
        meta = machine["metadata"]
        row = _row(machine, instances.pop((meta.get("namespace"), meta["name"]), None))
        rows.append([meta.get("namespace"), *row] if all_namespaces else row)
    for instance in instances.values():  # instances that no VirtualMachine stands for
        if not selector:
            row = _row(instance, instance)
            rows.append([instance["metadata"].get("namespace"), *row] if all_namespaces else row)
    headers = ["NAMESPACE", *_HEADERS] if all_namespaces else _HEADERS
    click.echo(output.table(headers, rows) if rows else "No machines. `stead create --help` makes one.")


def _row(machine: Object, instance: Object | None) -> list[Any]:
    status = machine.get("status", {})
    text = status.get("printableStatus") or status.get("phase", "")
    cpu: Any = ""
    memory: Any = ""
    address = host = ""
    if instance:
        state = instance.get("status", {})
        topology = state.get("currentCPUTopology", {})
        cpu = topology.get("sockets", 1) * topology.get("cores", 1) * topology.get("threads", 1) if topology else ""
        memory = state.get("memory", {}).get("guestCurrent") or state.get("memory", {}).get("guestAtBoot", "")
        interfaces = state.get("interfaces") or [{}]
        address = interfaces[0].get("ipAddress", "")
        host = state.get("nodeName", "")
    return [
        machine["metadata"]["name"], text, cpu, memory, address, host,
        output.age(machine["metadata"].get("creationTimestamp")),
    ]  # fmt: skip


@click.command()
@click.argument("name")
@click.option("-o", "--output", "form", type=output.FORMATS, default="table")
@command
async def info(session: Session, name: str, form: str) -> None:
    """Everything worth knowing of one machine: size, disks, addresses, guest, conditions."""
    machine = await session.machine(name)
    if form in ("json", "yaml", "name"):
        output.print_objects([machine], form, single=True)
        return
    instance = await session.instance_or_none(name)
    row = dict(zip(_HEADERS, _row(machine, instance), strict=True))
    facts = [(key if key == "CPU" else key.capitalize(), row[key]) for key in _HEADERS]
    spec = machine.get("spec", {})
    for title, key in (("Instancetype", "instancetype"), ("Preference", "preference")):
        if key in spec:
            facts.append((title, spec[key].get("name")))
    facts.append(("Run strategy", spec.get("runStrategy") or spec.get("running")))
    guest = (instance or {}).get("status", {}).get("guestOSInfo", {})
    if guest.get("prettyName"):
        facts.append(("Guest", f"{guest['prettyName']}, kernel {guest.get('kernelRelease', '')}"))
    width = max(len(title) for title, _ in facts)
    for title, value in facts:
        click.echo(f"{title + ':':<{width + 2}}{value if value not in (None, '') else '-'}")
    state = (instance or {}).get("status", {})
    if state.get("volumeStatus"):
        click.echo("\nDisks")
        volumes = [[item.get("name"), item.get("target"), _claim(item)] for item in state["volumeStatus"]]
        click.echo(output.table(["NAME", "TARGET", "CLAIM"], volumes))
    if state.get("interfaces"):
        click.echo("\nInterfaces")
        nics = [
            [item.get("name"), item.get("mac"), ", ".join(item.get("ipAddresses") or []), item.get("linkState")]
            for item in state["interfaces"]
        ]
        click.echo(output.table(["NAME", "MAC", "ADDRESSES", "LINK"], nics))
    conditions = {item["type"]: item for item in machine.get("status", {}).get("conditions", [])}
    conditions |= {item["type"]: item for item in state.get("conditions", [])}
    if conditions:
        click.echo("\nConditions")
        rows = [
            [item["type"], item.get("status"), item.get("reason"), item.get("message")] for item in conditions.values()
        ]
        click.echo(output.table(["TYPE", "STATUS", "REASON", "MESSAGE"], rows))


def _claim(volume: Object) -> str:
    return str(volume.get("persistentVolumeClaimInfo", {}).get("claimName", ""))


def _lifecycle(verb: str, text: str, help_text: str) -> click.Command:
    """A command that calls one subresource without options."""

    @click.command(verb, help=help_text)
    @click.argument("names", nargs=-1, required=True)
    @command
    async def run(session: Session, names: tuple[str, ...]) -> None:
        await _each(session, names, "virtualmachineinstances", verb.replace("-", ""), {}, text)

    return run


async def _each(
    session: Session, names: tuple[str, ...], plural: str, subresource: str, body: Object, text: str
) -> None:
    failed = False
    for name in names:
        try:
            await session.subresource(plural, name, subresource, body)
            click.echo(f"{name}: {text}")
        except ApiError as error:
            click.echo(f"{name}: {_plain(session, error)}", err=True)
            failed = True
    if failed:
        raise SystemExit(1)


def _plain(session: Session, error: ApiError) -> str:
    """A refusal without the words that programs look for."""
    if error.reason == "NotFound":
        where = f"namespace {session.namespace}"
        return f"no such machine is there, or it does not run, in {where} (`stead list -A` shows all)"
    return re.sub(r'^Operation cannot be fulfilled on \S+ "[^"]*": ', "", error.message)


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--paused", is_flag=True, help="Start with the CPUs stopped.")
@command
async def start(session: Session, names: tuple[str, ...], paused: bool) -> None:
    """Start machines."""
    await _each(session, names, "virtualmachines", "start", {"paused": True} if paused else {}, "starting")


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Pull the plug at once.")
@click.option("--grace-period", type=int, help="Seconds that the guest has for shutting down.")
@command
async def stop(session: Session, names: tuple[str, ...], force: bool, grace_period: int | None) -> None:
    """Shut machines down; the guest is asked first."""
    grace = 0 if force else grace_period
    await _each(session, names, "virtualmachines", "stop", {} if grace is None else {"gracePeriod": grace}, "stopping")


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Do not wait for the guest to shut down.")
@command
async def restart(session: Session, names: tuple[str, ...], force: bool) -> None:
    """Stop and start machines: new process, same disks."""
    await _each(session, names, "virtualmachines", "restart", {"gracePeriodSeconds": 0} if force else {}, "restarting")


pause = _lifecycle("pause", "paused", "Stop the CPUs of machines; memory stays.")
unpause = _lifecycle("unpause", "running again", "Let paused machines go on.")
soft_reboot = _lifecycle("soft-reboot", "rebooting", "Ask guests to reboot; the process stays the same.")
reset = _lifecycle("reset", "reset", "Press the reset button of machines.")


@click.command()
@click.argument("name")
@command
async def xml(session: Session, name: str) -> None:
    """The hypervisor's own description of a running machine (libvirt's domain XML)."""
    click.echo(await session.subresource_text("virtualmachineinstances", name, "xml"))


@click.command()
@click.option("-A", "--all-namespaces", is_flag=True)
@click.option("-o", "--output", "form", type=output.FORMATS, default="table")
@command
async def top(session: Session, all_namespaces: bool, form: str) -> None:
    """CPU, memory and traffic of running machines, measured over one second."""
    measured = await session.usage(None if all_namespaces else session.namespace)
    if form in ("json", "yaml"):
        click.echo(output.dump(measured, form))
        return
    rows = [
        [
            item["name"], f"{item['cpu_percent']:.0f}%", output.size(item["memory_bytes"]),
            f"{output.size(item['read_bytes'])}/s", f"{output.size(item['written_bytes'])}/s",
        ]
        for item in measured
    ]  # fmt: skip
    click.echo(output.table(["NAME", "CPU", "MEMORY", "READ", "WRITTEN"], rows) if rows else "No machine is running.")

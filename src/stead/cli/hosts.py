"""`stead up|down|plane|agent|status|kubeconfig|next|uninstall`: Stead on this host.

These read the settings, not a kubeconfig, since they make it. `status` answers for what it can see at once, and with
`--wait` returns when everything is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import click

from stead import installation, supervise
from stead.cli import joined, output
from stead.cli.session import Options, Session, command, explained
from stead.client.contract import Object, Selection
from stead.client.direct import DirectClient
from stead.client.kubeconfig import load
from stead.config import DEFAULT_FILE, ConfigError, Settings
from stead.kinds import register
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError

UNIT = "stead.service"


def _options() -> Options:
    found = click.get_current_context().find_object(Options)
    return found or Options(None, "", "", None)


def _need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise click.ClickException(f"{what} needs root: sudo stead {what}")


_STORE = click.option(
    "--store", default=None, metavar="URL", help="Where state is kept, as the setting `store`: etcd://HOST:PORT,…"
)


def _use_store(url: str | None) -> None:
    """The setting for this process and for those that it starts."""
    if url is not None:
        os.environ["STEAD_STORE"] = url


@click.command()
@click.option("--detach", is_flag=True, help="Go to the background; the log is <state_dir>/log/stead.log.")
@_STORE
def up(detach: bool, store: str | None) -> None:
    """Run Stead on this host: the plane (unprivileged) and the agent (root), kept running."""
    _need_root("up")
    _use_store(store)
    options = _options()
    settings = options.settings()
    config = options.config.resolve() if options.config else None
    try:
        if detach:
            _up_detached(settings, config)
        else:
            words = supervise.command(config)
            os.execv(words[0], words)  # noqa: S606 - our own interpreter, and no shell is wanted
    except (ConfigError, supervise.NotStarted, OSError) as error:
        raise click.ClickException(str(error)) from error


def start_detached(settings: Settings, config: Path) -> None:
    """`stead up --detach` for a host that has just joined. Raises click.ClickException."""
    try:
        _up_detached(settings, config)
    except (ConfigError, supervise.NotStarted, OSError) as error:
        raise click.ClickException(f"the host has joined, but its agent does not start: {error}") from error


def _up_detached(settings: Settings, config: Path | None) -> None:
    """Start what does not run, and start anew what runs another release than the one installed."""
    pid = installation.running_pid(settings, "up")
    if pid and installation.runs_this_release(settings):
        click.echo(f"Stead runs already (pid {pid}).")
        return
    if _is_unit_of(settings, config):
        subprocess.run(["systemctl", "restart", UNIT], check=True)
        click.echo(f"Stead runs as {UNIT}; its log: journalctl -u {UNIT}")
        return
    if pid:
        click.echo("Stead runs an earlier release: starting this one in its place. Machines go on running.")
        _stop(settings, pid, 30)
    pid = supervise.detach(settings, config)
    click.echo(f"Stead runs (pid {pid}); its log: {supervise.log_path(settings)}")


def _is_unit_of(settings: Settings, config: Path | None) -> bool:
    """Whether systemd keeps this installation: the unit runs the one with the default settings."""
    by_default = config in (None, DEFAULT_FILE) and settings.run_dir == Settings().run_dir
    return by_default and Path("/run/systemd/system").is_dir() and Path("/etc/systemd/system", UNIT).exists()


def _stop(settings: Settings, pid: int, timeout: float) -> None:
    """End `stead up` (to systemd a clean end, after which it starts nothing). Raises click.ClickException."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while installation.running_pid(settings, "up"):
        if time.monotonic() > deadline:
            raise click.ClickException(f"Stead (pid {pid}) did not stop within {timeout:.0f} s")
        time.sleep(0.05)


@click.command()
@click.option("--timeout", default=30, show_default=True, help="Seconds to wait for the end.")
def down(timeout: int) -> None:
    """Stop Stead on this host. Machines go on running."""
    _need_root("down")
    settings = _options().settings()
    pid = installation.running_pid(settings, "up")
    if not pid:
        click.echo("Stead does not run here.")
        return
    _stop(settings, pid, timeout)
    click.echo("Stopped. Machines go on running.")


@click.command()
@_STORE
def plane(store: str | None) -> None:
    """Run the plane alone: API server, store and controllers."""
    from stead import run

    _use_store(store)
    run.main_plane(_options().settings())


@click.command()
def agent() -> None:
    """Run the agent alone: the machines of this host."""
    _need_root("agent")
    from stead import run

    run.main_agent(_options().settings())


async def _state(settings: Settings) -> dict[str, Any]:
    """What runs, as one object for people and programs."""
    state: dict[str, Any] = {
        "instance": settings.instance,
        "url": settings.url,
        "processes": {name: installation.running_pid(settings, name) for name in ("up", "plane", "agent")},
        "ready": False,
        "hosts": [],
        "machines": {},
        "emulation": "",
        "message": "",
    }
    if settings.is_joined:
        await joined.observe(settings, state)
        return state
    path = installation.Files.of(settings).admin_kubeconfig
    if not os.access(path, os.R_OK):
        state["message"] = f"{path} cannot be read: run as root, or `stead up` has not run yet"
        return state
    client = DirectClient(load(path))
    try:
        async with asyncio.timeout(10):
            await client.request_text("GET", "/readyz")
            await _observe(client, settings, state)
    except Exception as error:  # aiohttp's family has no common base with OSError and ApiError
        state["message"] = f"the API does not answer: {error or type(error).__name__}"
    finally:
        await client.close()
    return state


async def _observe(client: DirectClient, settings: Settings, state: dict[str, Any]) -> None:
    """Hosts and machines into `state`, and whether this host is ready."""
    for node in (await client.list(register.NODE)).items:
        joined.note_host(state, node, settings)
        if node["metadata"]["name"] == settings.host:
            state["ready"] = state["hosts"][-1]["ready"] and await joined.has_fresh_beat(client, settings)
    for machine in (await client.list(register.VIRTUAL_MACHINE)).items:
        status = machine.get("status", {}).get("printableStatus", "Unknown")
        state["machines"][status] = state["machines"].get(status, 0) + 1
    if not state["ready"]:
        state["message"] = f"host {settings.host} is not ready yet"


def _await_ready(settings: Settings, seconds: float) -> dict[str, Any]:
    """The state, when it is ready or after so many seconds."""
    deadline = time.monotonic() + seconds
    state = asyncio.run(_state(settings))
    with output.Progress("Stead") as progress:
        while not state["ready"] and time.monotonic() < deadline:
            progress.show(state["message"] or "starting")
            time.sleep(0.2)
            state = asyncio.run(_state(settings))
    return state


@click.command()
@click.option("--wait", "seconds", default=0, help="Return when all is ready, or fail after so many seconds.")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "yaml"]), default="table")
def status(seconds: int, form: str) -> None:
    """Whether Stead runs here, and what it runs. Exit code 1 when it is not ready."""
    settings = _options().settings()
    state = _await_ready(settings, seconds)
    if form != "table":
        click.echo(output.dump(state, form))
    else:
        click.echo(f"API:       {state['url']}  {'ready' if state['ready'] else 'not ready'}")
        here = [(name, pid) for name, pid in state["processes"].items() if name != "plane" or not settings.is_joined]
        pids = ", ".join(f"{name} {pid or '-'}" for name, pid in here)
        click.echo(f"Processes: {pids}")
        hosts = ", ".join(f"{host['name']} {'Ready' if host['ready'] else 'NotReady'}" for host in state["hosts"])
        click.echo(f"Hosts:     {hosts or '-'}")
        counts = ", ".join(f"{count} {name}" for name, count in sorted(state["machines"].items()))
        click.echo(f"Machines:  {counts or 'none'}")
        if state["emulation"]:
            click.echo(f"Note:      machines run under software emulation, slowly: {state['emulation']}")
        if state["message"]:
            click.echo(f"           {state['message']}")
    if not state["ready"]:
        raise SystemExit(1)


@click.command()
def kubeconfig() -> None:
    """Print the administrator's kubeconfig: stead kubeconfig > ~/.kube/config"""
    path = installation.Files.of(_options().settings()).admin_kubeconfig
    try:
        click.echo(path.read_text(encoding="utf-8"), nl=False)
    except FileNotFoundError as error:
        raise click.ClickException(f"{path} does not exist: `stead up` makes it") from error
    except PermissionError as error:
        raise click.ClickException(f"{path} is the administrator's: run as root") from error


def _login(machine: Object) -> str:
    """The account that the image of a machine's first volume has for people; "" when that is not known."""
    from stead.images import catalogue

    spec = machine.get("spec", {})
    templates = spec.get("dataVolumeTemplates") or [{}]
    image = (templates[0].get("spec", {}).get("sourceRef") or {}).get("name", "")
    if published := catalogue.find(image):
        return published.user
    # Made of the host's own packages: named after its release (debian12), and `golden` for whatever that is.
    system = (spec.get("preference") or {}).get("name", "") if image == "golden" else image
    return next((each for each in ("debian", "ubuntu") if system.startswith(each)), "")


@click.command("next")
@click.argument("name")
@command
async def next_steps(session: Session, name: str) -> None:
    """What to type next, with machine NAME."""
    instance = await session.instance_or_none(name) or {}
    interfaces = instance.get("status", {}).get("interfaces") or [{}]
    user = _login(await session.machine(name))
    kept = installation.Files.of(session.settings).admin_kubeconfig
    click.echo(f"Machine {name} runs; its address is {interfaces[0].get('ipAddress', 'not known yet')}. Next:")
    for line, what in (
        (f"stead console {name}", "its serial console (Ctrl-] leaves)"),
        *([(f"stead ssh {user}@{name}", "log in, once its cloud-init carries your key")] if user else []),
        (f"stead info {name}", "size, disks, addresses, conditions"),
        (f"export KUBECONFIG={kept}", "then:"),
        ("kubectl get vm,vmi,dv", "the same objects, by kubectl"),
        (f"virtctl restart {name}", "and by KubeVirt's own command"),
        ("stead create --help", "the next machine, with virt-install's options"),
        ("sudo ./quickstart --remove", "undo everything"),
    ):
        click.echo(f"  {line:<52} {what}")


@click.command()
@click.option("--delete-machines-and-disks", is_flag=True, help="Also delete every machine and volume, after listing.")
def uninstall(delete_machines_and_disks: bool) -> None:
    """Stop Stead on this host and undo its bridge, rules and state. Refused while machines or volumes exist."""
    _need_root("uninstall")
    from stead import run

    options = _options()
    settings = options.settings()
    if settings.is_joined:
        joined.check_empty(settings, asyncio.run(_state(settings)))
        pid = installation.running_pid(settings, "up")
        if pid:
            _stop(settings, pid, 30)
        asyncio.run(run.remove(settings))
        click.echo("Stead's agent, bridge, rules and state are gone from this host; its settings file stays.")
        return
    if not settings.plane_dir.exists():
        click.echo(f"Stead keeps nothing on this host ({settings.plane_dir} does not exist): nothing to remove.")
        return
    with explained(options, settings):
        if not installation.running_pid(settings, "up"):
            click.echo("Stead does not run; starting it to see what it keeps.")
            _up_detached(settings, options.config.resolve() if options.config else None)
        state = _await_ready(settings, 60)
        if not state["ready"]:
            raise click.ClickException(
                f"Stead does not become ready ({state['message']}), so what it keeps cannot be listed and removed; "
                f"its log is {supervise.log_path(settings)}"
            )
        asyncio.run(_empty(settings, delete_machines_and_disks))
        pid = installation.running_pid(settings, "up")
        if pid:
            _stop(settings, pid, 30)
        asyncio.run(run.remove(settings))
    click.echo("Stead's processes, bridge, rules and state are gone from this host.")
    for folder in settings.all_backup_roots:
        if folder.is_dir() and any(folder.iterdir()):
            click.echo(f"Backups in {folder} stay; the keys of their repositories read them in another Stead.")


async def _empty(settings: Settings, delete: bool) -> None:
    """List every machine, volume and snapshot; delete them all when told so, else refuse. Backups stay as they are.

    Raises click.ClickException.
    """
    client = DirectClient(load(installation.Files.of(settings).admin_kubeconfig))
    session = Session(client, "", settings)
    try:
        machines = (await client.list(register.VIRTUAL_MACHINE)).items
        owned = {item["metadata"]["uid"] for item in machines}
        for item in (await client.list(register.VIRTUAL_MACHINE_INSTANCE)).items:
            if not owned.intersection(owner["uid"] for owner in item["metadata"].get("ownerReferences", [])):
                machines.append(item)
        volumes = (await client.list(register.PERSISTENT_VOLUME_CLAIM, Selection())).items
        snapshots = (await client.list(register.VOLUME_SNAPSHOT)).items
        for item in (*machines, *volumes, *snapshots):
            click.echo(f"{item['kind']} {item['metadata']['namespace']}/{item['metadata']['name']}")
        if (machines or volumes or snapshots) and not delete:
            raise click.ClickException(
                f"{len(machines)} machines, {len(volumes)} volumes and {len(snapshots)} snapshots of volumes exist; "
                "delete them first, or add --delete-machines-and-disks"
            )
        for resource in (
            register.VIRTUAL_MACHINE, register.VIRTUAL_MACHINE_INSTANCE, register.DATA_IMPORT_CRON,
            register.MACHINE_SNAPSHOT, register.MACHINE_SNAPSHOT_CONTENT, register.VOLUME_SNAPSHOT,
            register.DATA_VOLUME, register.PERSISTENT_VOLUME_CLAIM, register.PERSISTENT_VOLUME,
        ):  # fmt: skip
            await _delete_all(session, resource)
    finally:
        await client.close()


async def _delete_all(session: Session, resource: Resource) -> None:
    """Delete all objects of a kind, at once, and wait until they are gone. Guests get no time: their disks go too."""
    objects = (await session.client.list(resource)).items
    with output.Progress("removing") as progress:
        for item in objects:
            meta = item["metadata"]
            try:
                await session.client.delete(resource, meta.get("namespace"), meta["name"], grace_seconds=0)
            except ApiError as error:
                if error.reason != "NotFound":
                    raise
        for item in objects:
            meta = item["metadata"]
            progress.show(f"{resource.singular} {meta['name']}")
            await session.until_gone(resource, meta.get("namespace"), meta["name"], 120, progress)

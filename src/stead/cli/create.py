"""`stead create`: virt-install's line as it stands, as a VirtualMachine and what belongs to it.

The reading of the line is pure and lies in `virt_install`; this module asks the world (hosts' KVM, files, bridges, the
installer tree), prints or creates the manifests, and then does what virt-install does: connects the console, waits for
the end of an installation, and starts the installed machine from its disk. Exit code 2 = the line is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import string
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import click
import msgspec
import yaml

from stead.cli import installer_tree, output
from stead.cli.session import Options, Session, current_options, explained, open_session
from stead.cli.streams import attach_console
from stead.cli.virt_install import boot, manifest
from stead.cli.virt_install.cloudinit import MOST
from stead.cli.virt_install.manifest import Manifests
from stead.cli.virt_install.options import ACCEPTED, BY_FLAG, REFUSED
from stead.cli.virt_install.plan import Facts, Line, Object, Pool, Tree
from stead.cli.virt_install.suboptions import Option, Refusal, describe
from stead.client.kubeconfig import KubeconfigError
from stead.config import Settings
from stead.images import safety
from stead.kinds import register
from stead.kube.errors import ApiError
from stead.network import bridges

#: seconds for the one question that --dry-run asks of the API
ASK_SECONDS = 5.0
#: seconds until a created machine has to run, when --wait says nothing: images may have to be fetched first
START_SECONDS = 3600.0
#: seconds that a password that was made up stays on the terminal before the console takes it
PASSWORD_SECONDS = 10.0
_HEAD = 1024 * 1024
_FINAL = ("Succeeded", "Failed")


class Refused(click.ClickException):
    """The line cannot be honoured."""

    exit_code = 2


class Run(msgspec.Struct, frozen=True):
    """What to do after creation."""

    console: str
    #: minutes; None = not said, -1 = without limit
    wait: int | None
    quiet: bool
    #: whether the console was asked for by name, so that a missing terminal is no reason to leave it out
    insists: bool = False

    def say(self, text: str) -> None:
        """A line for people, unless --quiet."""
        if not self.quiet:
            click.echo(text, err=True)


def _taker(option: Option) -> Callable[[Any], Any]:
    """The click option of one option of virt-install."""
    names = [option.flag, *option.spellings, _parameter(option.flag)]
    if option.value == "none":
        return click.option(*names, is_flag=True, help=option.text)
    extra: dict[str, Any] = {"is_flag": False, "flag_value": ""} if option.value == "optional" else {}
    return click.option(*names, multiple=True, help=option.text, metavar="TEXT", **extra)


def _parameter(flag: str) -> str:
    return "opt_" + flag.strip("-").replace("-", "_")


def _with_options(command: Any) -> Any:
    for option in reversed(ACCEPTED):
        command = _taker(option)(command)
    for flag in REFUSED:
        command = click.option(
            flag, _parameter(flag), multiple=True, is_flag=False, flag_value="", hidden=True, help="Refused by name."
        )(command)
    return command


@click.command(context_settings={"max_content_width": 110})
@_with_options
@click.option("--dry-run", is_flag=True, help="Print the manifests and create nothing.")
@click.option("-o", "--output", "form", type=click.Choice(["yaml", "json"]), default="yaml", help="Of --dry-run.")
@click.option("--start/--no-start", default=True, help="Start the machine at once.")
@click.option("--finish", default="", metavar="NAME", help="End the installation of NAME: start it from its disk.")
def create(dry_run: bool, form: str, start: bool, finish: str, **given: Any) -> None:
    """Create a machine from virt-install's options; --OPTION=? lists what an option knows."""
    options = current_options()
    settings = options.settings()
    line = _line(given, start)
    try:
        if _explain(line):
            return
        minutes = manifest.wait_minutes(line)
        run = Run(manifest.console_of(line), minutes, line.has("--quiet"), line.text("--autoconsole") == "text")
        with explained(options, settings):
            if finish:
                asyncio.run(_finish_alone(options, settings, finish, run))
            elif dry_run:
                asyncio.run(_dry_run(options, settings, line, form))
            else:
                asyncio.run(_create(options, settings, line, run))
    except Refusal as refusal:
        raise Refused(str(refusal)) from refusal


def _line(given: dict[str, Any], start: bool) -> Line:
    """The options as typed, by their own names."""
    texts: dict[str, tuple[str, ...]] = {}
    for flag in (*BY_FLAG, *REFUSED):
        value = given.get(_parameter(flag))
        if value is True:
            texts[flag] = ("",)
        elif value:
            texts[flag] = tuple(value)
    return Line(texts, no_start=not start)


def _explain(line: Line) -> bool:
    """Whether the line asks what options know (`--disk=?`); the answer is printed."""
    asked = [flag for flag, texts in line.texts.items() if any(text in ("?", "help") for text in texts)]
    for flag in asked:
        click.echo(describe(BY_FLAG[flag]) if flag in BY_FLAG else f"{flag} is refused: {REFUSED[flag]}")
    return bool(asked)


# facts ---------------------------------------------------------------------------------------------------------------


async def _facts(line: Line, settings: Settings, namespace: str, session: Session | None) -> Facts:
    """What the pure part asks of the world. Raises Refusal for a tree that cannot be used."""
    pools = tuple(
        Pool(pool.name, pool.path, "" if pool.name == "default" else pool.name) for pool in settings.all_pools
    )
    location = line.last("--location")
    tree: Tree | None = await installer_tree.find(location) if location else None
    return Facts(
        namespace=namespace,
        pools=pools,
        kvm=await _have_kvm(session) if session else None,
        exists=_exists,
        inspect=_inspect,
        read_text=_read_text,
        bridge_hint=lambda name: "" if bridges.bridge_exists(name) else bridges.how_to_make(name),
        password=_new_password,
        tree=tree,
    )


async def _have_kvm(session: Session) -> bool | None:
    """Whether every schedulable host runs guests by KVM; None when there is no host or it does not say."""
    try:
        async with asyncio.timeout(ASK_SECONDS):
            hosts = (await session.client.list(register.NODE)).items
    except TimeoutError:
        return None
    told = []
    for host in hosts:
        annotations = host["metadata"].get("annotations") or {}
        if host.get("spec", {}).get("unschedulable") or "stead.io/capabilities" not in annotations:
            continue
        with contextlib.suppress(msgspec.DecodeError):
            found: Any = msgspec.json.decode(annotations["stead.io/capabilities"])
            told.append(not found.get("software_emulation"))
    return all(told) if told else None


def _exists(path: Path) -> bool | None:
    try:
        if not path.parent.is_dir():
            return None
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return True


def _inspect(path: Path) -> tuple[str, int]:
    """(format, virtual size) of an image after the checks that the agent repeats; ("", 0) if unreadable."""
    try:
        if not path.is_file():
            raise Refusal(f"{path} is not a plain file")
        with path.open("rb") as file:
            found = safety.examine(file.read(_HEAD))
        return found.format, found.virtual_bytes if found.virtual_bytes >= 0 else path.stat().st_size
    except OSError:
        return "", 0
    except safety.UnsafeImage as error:
        raise Refusal(f"{path}: {error}") from None


def _read_text(name: str) -> str:
    try:
        with Path(name).expanduser().open("rb") as file:
            data = file.read(MOST + 1)
        if len(data) > MOST:
            raise Refusal(f"{name[:120]} is larger than {output.size(MOST)}")
        return data.decode()
    except OSError as error:
        raise Refusal(f"cannot read {name[:120]}: {error.strerror or error}") from None
    except (UnicodeDecodeError, ValueError, RuntimeError):
        raise Refusal(f"cannot read {name[:120]}: this is no text") from None


def _new_password() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(16))


# what is done --------------------------------------------------------------------------------------------------------


async def _dry_run(options: Options, settings: Settings, line: Line, form: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        session: Session | None = None
        try:
            session = await stack.enter_async_context(open_session(options, settings))
            facts = await _facts(line, settings, session.namespace, session)
        except (ApiError, KubeconfigError, OSError, aiohttp.ClientError, click.ClickException):
            facts = await _facts(line, settings, session.namespace if session else options.namespace or "default", None)
        made = manifest.build(line, facts)
    _tell(made, line.has("--quiet"))
    if form == "json":
        output.print_objects(made.all, "json")
        return
    click.echo(yaml.safe_dump_all(made.all, sort_keys=False, allow_unicode=True, width=4096), nl=False)


def _tell(made: Manifests, quiet: bool) -> None:
    for warning in made.warnings if not quiet else ():
        click.echo(f"warning: {warning}", err=True)
    for note in made.notes:
        click.echo(note, err=True)


async def _create(options: Options, settings: Settings, line: Line, run: Run) -> None:
    async with open_session(options, settings) as session:
        made = manifest.build(line, await _facts(line, settings, session.namespace, session))
        name = made.machine["metadata"]["name"]
        if await _is_there(session, made.machine):
            raise Refused(f"machine {name} exists already; `stead info {name}` shows it")
        await _check_image(session, line.text("--image"), made)
        _tell(made, run.quiet)
        await _create_all(session, made, run if line.has("--debug") else msgspec.structs.replace(run, quiet=True))
        if line.no_start:
            click.echo(f"Machine {name} is created; `stead start {name}` starts it.")
            return
        if made.notes and run.console == "text" and sys.stdout.isatty():
            await asyncio.sleep(PASSWORD_SECONDS)
        await _follow(session, name, made.installs, run)


async def _check_image(session: Session, image: str, made: Manifests) -> None:
    """Raises Refused when --image names none: the machine's size and preference come from it."""
    if not image:
        return
    reference = made.machine["spec"]["dataVolumeTemplates"][0]["spec"]["sourceRef"]
    try:
        await session.client.get(register.DATA_SOURCE, reference["namespace"], reference["name"])
    except ApiError as error:
        if error.reason != "NotFound":
            raise
        text = f"there is no image {image}; `stead image list --available` shows what is there and what can be added"
        raise Refused(text) from error


async def _is_there(session: Session, item: Object) -> bool:
    """Whether the object exists. Raises Refused for a network attachment of the same name that is another network."""
    resource = register.resource_for(item["kind"], item["apiVersion"].rpartition("/")[0])
    name = item["metadata"]["name"]
    try:
        found = await session.client.get(resource, item["metadata"]["namespace"], name)
    except ApiError as error:
        if error.reason != "NotFound":
            raise
        return False
    if resource == register.NETWORK_ATTACHMENT_DEFINITION and found.get("spec") != item["spec"]:
        raise Refused(
            f"network attachment {name} exists already and means another network; use --network network={name}"
        )
    return True


async def _create_all(session: Session, made: Manifests, run: Run) -> None:
    """Create everything, the machine last; what was created is taken back when something fails."""
    created: list[Object] = []
    try:
        for item in made.all:
            resource = register.resource_for(item["kind"], item["apiVersion"].rpartition("/")[0])
            label = f"{resource.singular}/{item['metadata']['name']}"
            if item in made.shared and await _is_there(session, item):
                run.say(f"{label} is there already")
                continue
            path, query = resource.path(item["metadata"]["namespace"]), {"fieldValidation": "Strict"}
            created.append(await session.client.request_json("POST", path, query=query, body=item))
            run.say(f"{label} created")
    except BaseException:
        for item in reversed(created):
            resource = register.resource_for(item["kind"], item["apiVersion"].rpartition("/")[0])
            with contextlib.suppress(ApiError, OSError):
                meta = item["metadata"]
                await session.client.delete(resource, meta["namespace"], meta["name"], uid=meta.get("uid", ""))
        raise
    machine = created[-1]["metadata"]
    owner = {
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": machine["name"], "uid": machine["uid"],
        "controller": False, "blockOwnerDeletion": False,
    }  # fmt: skip
    for secret in made.secrets:
        patch = {"metadata": {"ownerReferences": [owner]}}
        await session.client.patch(register.SECRET, machine["namespace"], secret["metadata"]["name"], patch)


async def _follow(session: Session, name: str, installs: bool, run: Run) -> None:
    """Console and waiting, as virt-install does it."""
    finish = f"`stead create --finish {name}`"
    if run.wait == 0 or (run.console == "none" and run.wait is None):
        click.echo(f"Machine {name} is created and starts." + _later(installs, finish))
        return
    await _until_running(session, name, START_SECONDS, run)
    wants_console = run.console == "text" and (run.insists or (sys.stdin.isatty() and sys.stdout.isatty()))
    if run.console == "graphical":
        run.say(f"`stead vnc {name}` shows the display")
    if wants_console:
        await attach_console(session, name)
    if not installs:
        click.echo(f"Machine {name} runs.")
        return
    instance = await session.instance_or_none(name)
    over = instance is None or instance.get("status", {}).get("phase") in _FINAL
    if wants_console and not over and run.wait is None:
        click.echo(f"The installation of {name} goes on." + _later(True, finish))
        return
    minutes = -1 if run.wait is None else run.wait
    await _until_installed(session, name, None if minutes < 0 else minutes * 60.0, run)
    await _finish(session, name, run)


def _later(installs: bool, finish: str) -> str:
    return f" When the installer has ended, {finish} starts it from its disk." if installs else ""


def _progress(name: str, run: Run) -> contextlib.AbstractContextManager[output.Progress | None]:
    return contextlib.nullcontext() if run.quiet else output.Progress(name)


async def _until_running(session: Session, name: str, seconds: float, run: Run) -> None:
    """Return when the machine runs or has run. Raises click.ClickException after `seconds`."""
    until = time.monotonic() + seconds
    with _progress(name, run) as progress:
        while True:
            reached, text, fraction = await session.machine_progress(name, "running")
            if progress:
                progress.show(text, fraction)
            instance = None if reached else await session.instance_or_none(name)
            if reached or (instance and instance.get("status", {}).get("phase") in _FINAL):
                return
            if time.monotonic() > until:
                raise click.ClickException(f"{name} does not run after {seconds:.0f} s ({text}); `stead events {name}`")
            await asyncio.sleep(0.5)


async def _until_installed(session: Session, name: str, seconds: float | None, run: Run) -> None:
    """Return when the installer's instance has ended well. Raises click.ClickException."""
    until = None if seconds is None else time.monotonic() + seconds
    with _progress(name, run) as progress:
        while True:
            instance = await session.instance_or_none(name)
            phase = (instance or {}).get("status", {}).get("phase", "")
            if instance is None or phase == "Succeeded":
                return
            if phase == "Failed":
                raise click.ClickException(f"the installation of {name} failed; `stead events {name}` says why")
            if progress:
                progress.show("the installer runs; it ends with a reboot")
            if until is not None and time.monotonic() > until:
                raise click.ClickException(
                    f"the installation of {name} still goes on; `stead create --finish {name}` waits for its end"
                )
            await asyncio.sleep(1)


async def _finish_alone(options: Options, settings: Settings, name: str, run: Run) -> None:
    """--finish NAME: wait for the installer's end if need be, then start the machine from its disk."""
    async with open_session(options, settings) as session:
        machine = await session.client.get(register.VIRTUAL_MACHINE, session.namespace, name)
        if boot.finished(machine) is None:
            raise Refused(f"machine {name} has no installation going on")
        if run.wait == 0:
            instance = await session.instance_or_none(name)
            if instance is not None and instance.get("status", {}).get("phase") not in _FINAL:
                raise click.ClickException(f"the installer of {name} still runs; leave --wait out to wait for its end")
        else:
            minutes = -1 if run.wait is None else run.wait
            await _until_installed(session, name, None if minutes < 0 else minutes * 60.0, run)
        await _finish(session, name, run)


async def _finish(session: Session, name: str, run: Run) -> None:
    """The installer's instance goes, the machine loses the installer and starts by its own run strategy."""
    with _progress(name, run) as progress:
        instance = await session.instance_or_none(name)
        if instance is not None:
            if progress:
                progress.show("the installation is over; the installer is taken away")
            with contextlib.suppress(ApiError):
                await session.client.delete(register.VIRTUAL_MACHINE_INSTANCE, session.namespace, name)
            waiting = progress or output.Progress(name)
            await session.until_gone(register.VIRTUAL_MACHINE_INSTANCE, session.namespace, name, 120, waiting)
        for attempt in range(5):
            machine = await session.client.get(register.VIRTUAL_MACHINE, session.namespace, name)
            done = boot.finished(machine)
            if done is None:
                break
            try:
                await session.client.update(register.VIRTUAL_MACHINE, done)
                break
            except ApiError as error:
                if error.reason != "Conflict" or attempt == 4:
                    raise
    strategy = (done or machine)["spec"].get("runStrategy")
    if strategy == "Manual":
        click.echo(f"Machine {name} is installed and off; `stead start {name}` starts it.")
        return
    click.echo(f"Machine {name} is installed and starts from its disk.")

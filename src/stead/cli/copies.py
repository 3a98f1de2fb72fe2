"""`stead snapshot create|list|restore|delete`, `stead clone`, `stead export`: copies of machines, with progress.

All of it is done by the control plane through KubeVirt's kinds; these commands declare, wait and tell. `export` writes
one file a disk and the manifests beside them, through the export's own token, as `virtctl vmexport` does.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from stead.cli import output
from stead.cli.session import Session, command
from stead.client.contract import Object, Selection
from stead.kinds import exported, register
from stead.kinds.resource import Resource
from stead.kinds.snapshot import RUNS_STILL
from stead.kube.errors import ApiError

_LOOK_SECONDS = 0.2
_SNAPSHOT, _RESTORE = register.MACHINE_SNAPSHOT, register.MACHINE_RESTORE
_POLICIES = click.Choice(["StopTarget", "WaitGracePeriod", "FailImmediate", "WaitEventually"])
#: of an object: (done, sentence); raises click.ClickException when it has failed
Judge = Callable[[Object], tuple[bool, str]]


def _machine(name: str) -> Object:
    return {"apiGroup": "kubevirt.io", "kind": register.VIRTUAL_MACHINE.kind, "name": name}


def _generated(name: str) -> str:
    return f"{name}-{secrets.token_hex(3)}"


def _reason(obj: Object, *kinds: str) -> str:
    for condition in (obj.get("status") or {}).get("conditions") or ():
        if condition["type"] in kinds:
            return str(condition.get("message") or condition.get("reason") or "")
    return ""


async def _declared(session: Session, resource: Resource, name: str, spec: Object) -> None:
    metadata = {"namespace": session.namespace, "name": name}
    body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, "spec": spec}
    await session.client.create(resource, body)


async def _awaited(session: Session, resource: Resource, name: str, judge: Judge, timeout: float) -> Object:
    """The object once it is done."""
    with output.Progress(f"{resource.singular.removeprefix('virtualmachine')} {name}") as progress:
        try:
            async with asyncio.timeout(timeout):
                while True:
                    found = await session.client.get(resource, session.namespace, name)
                    done, text = judge(found)
                    progress.show(text, 1.0 if done else None)
                    if done:
                        return found
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError as error:
            raise click.ClickException(f"{resource.singular} {name} is not done after {timeout:.0f} s") from error


def _judge_snapshot(snapshot: Object) -> tuple[bool, str]:
    status = snapshot.get("status") or {}
    trouble = (status.get("error") or {}).get("message") or ""
    if status.get("phase") == "Failed":
        raise click.ClickException(f"snapshot {snapshot['metadata']['name']} failed: {trouble}")
    return bool(status.get("readyToUse")), trouble or _reason(snapshot, "Progressing") or "declared"


def _judge_restore(restore: Object) -> tuple[bool, str]:
    if trouble := _reason(restore, "Failure"):
        hint = "; wait until it has stopped, or add --while-running StopTarget" if trouble == RUNS_STILL else ""
        raise click.ClickException(f"restore {restore['metadata']['name']} failed: {trouble}{hint}")
    return bool((restore.get("status") or {}).get("complete")), _reason(restore, "Progressing") or "declared"


def _judge_phase(obj: Object) -> tuple[bool, str]:
    phase = str((obj.get("status") or {}).get("phase") or "declared")
    if phase in ("Failed", "Skipped", "Terminated"):
        raise click.ClickException(f"{obj['metadata']['name']} is {phase}: {_reason(obj, 'Ready')}")
    why = _reason(obj, "Ready")
    return phase in ("Succeeded", "Ready"), f"{phase}: {why}" if why else phase


_TIMEOUT = click.option("--timeout", type=float, default=600.0, show_default=True, help="Seconds to wait.")


@click.group()
def snapshot() -> None:
    """Machines as they were at one moment."""


@snapshot.command("create")
@click.argument("machine")
@click.option("--name", default="", help="Name of the snapshot; made up when absent.")
@click.option("--deadline", default="", help="Give up after this long (5m).")
@click.option("--retain", is_flag=True, help="Keep the content when the snapshot is deleted.")
@_TIMEOUT
@command
async def create_snapshot(
    session: Session, machine: str, name: str, deadline: str, retain: bool, timeout: float
) -> None:
    """Keep MACHINE and its disks as they are now; a running one goes on."""
    spec: Object = {"source": _machine(machine)}
    if deadline:
        spec["failureDeadline"] = deadline
    if retain:
        spec["deletionPolicy"] = "Retain"
    name = name or _generated(machine)
    await session.client.get(register.VIRTUAL_MACHINE, session.namespace, machine)
    await _declared(session, _SNAPSHOT, name, spec)
    made = await _awaited(session, _SNAPSHOT, name, _judge_snapshot, timeout)
    how = ", ".join(made["status"].get("indications") or ["Offline"])
    click.echo(f"snapshot {name} of {machine} ({how})")


@snapshot.command("list")
@click.argument("machine", default="")
@click.option("-o", "--output", "form", type=output.FORMATS, default="table")
@command
async def list_snapshots(session: Session, machine: str, form: str) -> None:
    """Snapshots of MACHINE, or of all machines."""
    found = (await session.client.list(_SNAPSHOT, Selection(session.namespace))).items
    found = [s for s in found if machine in ("", s["spec"]["source"].get("name"))]
    if form in ("json", "yaml", "name"):
        output.print_objects(found, form)
        return
    rows: list[list[Any]] = []
    for each in found:
        status = each.get("status") or {}
        how = ",".join(status.get("indications") or []) if status.get("readyToUse") else ""
        rows.append([
            each["metadata"]["name"], each["spec"]["source"].get("name"), status.get("phase"),
            status.get("creationTime"), how, (status.get("error") or {}).get("message"),
        ])  # fmt: skip
    hint = "No snapshots yet: `stead snapshot create MACHINE`."
    click.echo(output.table(["NAME", "MACHINE", "STATUS", "TAKEN", "HOW", "MESSAGE"], rows) if rows else hint)


@snapshot.command("restore")
@click.argument("name")
@click.option("--to", "target", default="", help="Another machine, which is made; else the snapshot's own.")
@click.option("--while-running", "policy", type=_POLICIES, default="FailImmediate", show_default=True,
              help="What to do while the machine runs.")  # fmt: skip
@_TIMEOUT
@command
async def restore_snapshot(session: Session, name: str, target: str, policy: str, timeout: float) -> None:
    """Make the machine what it was when snapshot NAME was taken, or another one from it."""
    kept = await session.client.get(_SNAPSHOT, session.namespace, name)
    target = target or str(kept["spec"]["source"]["name"])
    restore = _generated(name)
    spec = {"target": _machine(target), "virtualMachineSnapshotName": name, "targetReadinessPolicy": policy}
    await _declared(session, _RESTORE, restore, spec)
    await _awaited(session, _RESTORE, restore, _judge_restore, timeout)
    click.echo(f"machine {target} is as in snapshot {name}")


@snapshot.command("delete")
@click.argument("names", nargs=-1, required=True)
@_TIMEOUT
@command
async def delete_snapshots(session: Session, names: tuple[str, ...], timeout: float) -> None:
    """Delete snapshots, with their content unless that is retained."""
    for name in names:
        await session.client.delete(_SNAPSHOT, session.namespace, name)
        with output.Progress(f"snapshot {name}") as progress:
            await session.until_gone(_SNAPSHOT, session.namespace, name, timeout, progress)
        click.echo(f"snapshot {name} deleted")


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("--from-snapshot", is_flag=True, help="SOURCE names a snapshot.")
@_TIMEOUT
@command
async def clone(session: Session, source: str, target: str, from_snapshot: bool, timeout: float) -> None:
    """Make machine TARGET like SOURCE, with identities of its own."""
    reference = _machine(source)
    if from_snapshot:
        reference = {"apiGroup": _SNAPSHOT.group, "kind": _SNAPSHOT.kind, "name": source}
    name = _generated(f"clone-{target}")
    await _declared(session, register.MACHINE_CLONE, name, {"source": reference, "target": _machine(target)})
    await _awaited(session, register.MACHINE_CLONE, name, _judge_phase, timeout)
    await session.client.delete(register.MACHINE_CLONE, session.namespace, name)
    click.echo(f"machine {target} is a clone of {source}")


@click.command()
@click.argument("source")
@click.option("--from-snapshot", is_flag=True, help="SOURCE names a snapshot.")
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to fill.")
@click.option("--format", "format", type=click.Choice(list(exported.DISKS)), default="gzip", show_default=True)
@_TIMEOUT
@command
async def export(session: Session, source: str, from_snapshot: bool, folder: Path, format: str, timeout: float) -> None:
    """Download the disks and the manifest of machine SOURCE, which must be stopped (or of a snapshot)."""
    reference = _machine(source)
    if from_snapshot:
        reference = {"apiGroup": _SNAPSHOT.group, "kind": _SNAPSHOT.kind, "name": source}
    name = _generated(f"export-{source}")
    await _declared(session, register.MACHINE_EXPORT, name, {"source": reference, "ttlDuration": "24h"})
    try:
        ready = await _awaited(session, register.MACHINE_EXPORT, name, _judge_phase, timeout)
        secret = await session.client.get(register.SECRET, session.namespace, ready["status"]["tokenSecretRef"])
        token = base64.b64decode(secret["data"]["token"]).decode()
        folder.mkdir(parents=True, exist_ok=True)
        for volume in ready["status"]["links"]["external"]["volumes"]:
            file = exported.DISKS[format]
            path = folder / f"{volume['name']}.{file.partition('.')[2]}"
            rest = f"volumes/{volume['name']}/{file}"
            await _download(session, exported.path_of(ready, rest), token, path)
            click.echo(str(path))
        manifest = folder / "machine.yaml"
        await _download(session, exported.path_of(ready, "external/manifests/all"), token, manifest)
        click.echo(str(manifest))
    finally:
        await _dropped(session, name)


async def _dropped(session: Session, name: str) -> None:
    try:
        await session.client.delete(register.MACHINE_EXPORT, session.namespace, name)
    except ApiError as error:
        if error.reason != "NotFound":
            raise


async def _download(session: Session, path: str, token: str, target: Path) -> None:
    """One file, whole or not at all."""
    partial = target.with_name(f".{target.name}.part")
    done = 0
    try:
        with output.Progress(target.name) as progress, partial.open("wb") as file:
            async for chunk, total in session.client.download(path, {exported.TOKEN_HEADER: token}):
                await asyncio.to_thread(file.write, chunk)
                done += len(chunk)
                progress.show(output.size(done), done / total if total else None)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)

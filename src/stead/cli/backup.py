"""`stead backup …`: repositories, points in them, and the way back.

`create` asks the API for a Backup and follows it; the host of the machine does the work. `list`, `verify`, `prune` and
`restore` open the repository themselves, with the key: that of a BackupRepository object (whoever may read its Secret),
or, when there is no Stead left, `--directory` and `--key-file`. So a folder is read on a host that sees it. `restore`
makes a new machine: its disks go through the API as uploads.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import os
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from stead.cli import backup_places, output
from stead.cli.session import Session, command
from stead.client.contract import Object
from stead.kinds import register
from stead.storage.backup import keys, prune, retention, verify
from stead.storage.backup.points import DiskPoint, Point
from stead.storage.backup.repository import Repository
from stead.storage.backup.restore import Disk

_CHUNK = 4 << 20
_UPLOAD_SECONDS = 120
_RULES = ("last", "daily", "weekly", "monthly", "yearly")


@click.group()
def backup() -> None:
    """Backups of machines, and the way back."""


@backup.command("create-key")
def create_key() -> None:
    """Print a new key for a repository. Whoever loses the key has lost the backups: keep a copy apart."""
    click.echo(keys.text_from_secret(keys.new_secret()))


@backup.command("add-repository")
@click.argument("name")
@click.option("--directory", required=True, type=click.Path(path_type=Path), help="Folder below `backup_roots`.")
@click.option("--key-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="An existing key.")
@command
async def add_repository(session: Session, name: str, directory: Path, key_file: Path | None) -> None:
    """Declare repository NAME with its key. A new key is printed: keep a copy apart from this host."""
    text = key_file.read_text(encoding="utf-8").strip() if key_file else keys.text_from_secret(keys.new_secret())
    keys.secret_from_text(text)
    secret = f"{name}-backup-key"
    meta = {"namespace": session.namespace}
    value = base64.b64encode(text.encode()).decode()
    await session.client.create(
        register.SECRET,
        {"apiVersion": "v1", "kind": "Secret", "metadata": {**meta, "name": secret}, "data": {"key": value}},
    )
    await session.client.create(
        register.BACKUP_REPOSITORY,
        {
            "apiVersion": register.BACKUP_REPOSITORY.api_version,
            "kind": "BackupRepository",
            "metadata": {**meta, "name": name},
            "spec": {"keySecretName": secret, "directory": {"path": str(directory)}},
        },
    )
    click.echo(f"repository {name} is declared; Secret {secret} has its key")
    if key_file is None:
        click.echo(f"Keep a copy of the key apart from this host. Without it the backups cannot be read:\n{text}")


@backup.command()
@click.argument("machine")
@click.option("--repository", "-r", required=True, help="BackupRepository of the namespace.")
@click.option("--full", is_flag=True, help="Read everything, whatever is known of changes.")
@click.option("--skip-quiesce", is_flag=True, help="Do not freeze the guest's file systems.")
@click.option("--wait/--no-wait", default=True, help="Return when it is done.")
@command
async def create(session: Session, machine: str, repository: str, full: bool, skip_quiesce: bool, wait: bool) -> None:
    """Back up MACHINE now."""
    for resource, wanted in ((register.VIRTUAL_MACHINE, machine), (register.BACKUP_REPOSITORY, repository)):
        await session.client.get(resource, session.namespace, wanted)
    spec: Object = {"machine": machine, "repository": repository}
    spec |= {"forceFull": True} if full else {}
    spec |= {"skipQuiesce": True} if skip_quiesce else {}
    name = f"{machine[:40].rstrip('.-')}-{datetime.now(UTC):%Y%m%d%H%M%S}-{uuid.uuid4().hex[:4]}"
    await session.client.create(
        register.BACKUP,
        {
            "apiVersion": register.BACKUP.api_version,
            "kind": "Backup",
            "metadata": {"namespace": session.namespace, "name": name},
            "spec": spec,
        },
    )
    if not wait:
        click.echo(f"backup {name} is asked for")
        return
    with output.Progress(f"backup {name}") as progress:
        while True:
            status = (await session.client.get(register.BACKUP, session.namespace, name)).get("status") or {}
            phase = status.get("phase", "Pending")
            if phase == "Failed":
                raise click.ClickException(f"backup {name}: {status.get('message') or status.get('reason')}")
            done = str(status.get("progress", "")).rstrip("%")
            fraction = float(done) / 100 if done.replace(".", "", 1).isdigit() else None
            progress.show(status.get("message") or phase, fraction)
            if phase == "Succeeded":
                break
            await asyncio.sleep(0.3)
    how = "quiesced" if status.get("quiesced") else "as after a power failure"
    changed, stored = (output.size(float(status.get(key) or 0)) for key in ("changedBytes", "storedBytes"))
    click.echo(f"point {status['point']}: {status['type']}, {how}; {changed} changed, {stored} stored")
    if status.get("message"):
        click.echo(status["message"], err=True)


# what opens the repository itself ------------------------------------------------------------------------------------


@backup.command("list")
@click.argument("machine", required=False)
@backup_places.where
@command
async def list_points(session: Session, /, machine: str | None, **place: Any) -> None:
    """The points in a repository, oldest first; of MACHINE, or of all."""
    repository = await backup_places.opened(session, place)
    points = [p for p in await asyncio.to_thread(repository.points) if machine in (None, p.machine)]
    rows = [
        [
            p.short, p.when.strftime("%Y-%m-%d %H:%M:%S"), f"{p.namespace}/{p.machine}", p.kind,
            "yes" if p.quiesced else "no", output.size(float(sum(d.size_bytes for d in p.disks))),
            output.size(float(sum(d.changed_bytes for d in p.disks))),
        ]
        for p in points
    ]  # fmt: skip
    headers = ["POINT", "TIME (UTC)", "MACHINE", "TYPE", "QUIESCED", "SIZE", "CHANGED"]
    click.echo(output.table(headers, rows) if rows else "No points yet: `stead backup create MACHINE -r REPOSITORY`.")


@backup.command("verify")
@backup_places.where
@command
async def verify_repository(session: Session, /, **place: Any) -> None:
    """Read everything and prove it. Names what is damaged and what that costs; exit code 1 then."""
    repository = await backup_places.opened(session, place)
    read = 0

    def advance(count: int) -> None:
        nonlocal read
        read += count

    with output.Progress("verify") as progress:
        task = asyncio.ensure_future(asyncio.to_thread(verify.verify, repository, advance))
        while not task.done():
            progress.show(f"{output.size(float(read))} read")
            await asyncio.wait([task], timeout=0.3)
        report = task.result()
    for finding in report.findings:
        click.echo(f"{finding.object}: {finding.message}")
    whole = sum(report.points.values())
    click.echo(f"{whole} of {len(report.points)} points are whole; {report.granules} granules in {report.packs} packs")
    if not report.ok:
        raise click.ClickException(f"{len(report.findings)} things are damaged")


@backup.command("prune")
@click.argument("machine", required=False)
@click.option("--keep-last", "last", type=click.IntRange(0), default=0, help="The last N points of each machine.")
@click.option("--keep-daily", "daily", type=click.IntRange(0), default=0, help="The newest of each of N days.")
@click.option("--keep-weekly", "weekly", type=click.IntRange(0), default=0, help="The newest of each of N weeks.")
@click.option("--keep-monthly", "monthly", type=click.IntRange(0), default=0, help="The newest of each of N months.")
@click.option("--keep-yearly", "yearly", type=click.IntRange(0), default=0, help="The newest of each of N years.")
@click.option("--point", "named", multiple=True, help="Remove this point, whatever the rules say.")
@click.option("--dry-run", is_flag=True, help="Say what would go and why the rest stays.")
@backup_places.where
@command
async def prune_points(
    session: Session, /, machine: str | None, named: tuple[str, ...], dry_run: bool, **rest: Any
) -> None:
    """Remove points of MACHINE (or of all) that no rule keeps, and what only they needed."""
    policy = retention.Retention(**{rule: int(rest.pop(rule)) for rule in _RULES})
    repository = await backup_places.opened(session, rest)
    points = [p for p in await asyncio.to_thread(repository.points) if machine in (None, p.machine)]
    kept: dict[str, tuple[str, ...]] = {}
    for whose in {(p.namespace, p.machine) for p in points}:
        of = [(p.name, p.when) for p in points if (p.namespace, p.machine) == whose]
        kept |= retention.kept(of, policy)
    by_hand = {(await asyncio.to_thread(repository.find_point, text)).name for text in named}
    remove = [p for p in points if p.name not in kept or p.name in by_hand]
    for point in points if dry_run else ():
        why = "goes" if point in remove else f"stays: {', '.join(kept[point.name])}"
        click.echo(f"{point.short}  {point.time}  {point.namespace}/{point.machine}  {why}")
    if dry_run:
        return
    names = [p.name for p in remove]
    done = await asyncio.to_thread(prune.prune, repository, names, datetime.now(UTC), f"stead of {os.uname().nodename}")
    freed = output.size(float(done.freed_bytes))
    click.echo(f"{done.points} points, {done.packs} packs and {done.maps} maps removed; {freed} freed")
    if done.waits_for:
        click.echo(f"space is freed by the next prune: at work now: {', '.join(done.waits_for)}")


@backup.command()
@click.argument("point")
@click.option("--as", "name", required=True, help="Name of the new machine.")
@click.option("--start", is_flag=True, help="Start it when its disks are there.")
@click.option("--storage-class", default="", help="Where the disks go; else where they came from.")
@backup_places.where
@command
async def restore(session: Session, /, point: str, name: str, start: bool, storage_class: str, **place: Any) -> None:
    """Make a new machine of POINT: its disks as they were, a firmware UUID and MAC addresses of its own."""
    repository = await backup_places.opened(session, place)
    found = await asyncio.to_thread(repository.find_point, point)
    machine, claims = machine_from(found, name, session.namespace)
    for disk in found.disks:
        if disk.claim in claims:
            await _restore_disk(session, repository, disk, (claims[disk.claim], storage_class))
    machine["spec"].pop("running", None)
    machine["spec"]["runStrategy"] = "Always" if start else "Halted"
    await session.client.create(register.VIRTUAL_MACHINE, machine)
    click.echo(f"machine {name} is restored from point {found.short} of {found.time}")


def machine_from(point: Point, name: str, namespace: str) -> tuple[Object, dict[str, str]]:
    """The new machine's manifest, and for each claim of the point the name of the new one. ClickException."""
    manifest = next((m for m in point.objects if m.get("kind") == "VirtualMachine"), None)
    if manifest is None:
        raise click.ClickException(f"point {point.short} has no manifest of a machine")
    machine = copy.deepcopy(manifest)
    labels = (machine.get("metadata") or {}).get("labels") or {}
    machine["metadata"] = {"name": name, "namespace": namespace, "labels": labels}
    machine["spec"].pop("dataVolumeTemplates", None)
    template = machine["spec"]["template"]["spec"]
    claims: dict[str, str] = {}
    for volume in template.get("volumes") or []:
        for kind, key in (("dataVolume", "name"), ("persistentVolumeClaim", "claimName")):
            claim = (volume.get(kind) or {}).get(key)
            disk = point.disk(str(volume.get("name")))
            if claim and disk is not None:
                claims[str(claim)] = f"{name}-{volume['name']}"
                del volume[kind]
                volume["dataVolume"] = {"name": claims[str(claim)]}
    (template["domain"].get("firmware") or {}).pop("uuid", None)
    (template["domain"].get("firmware") or {}).pop("serial", None)
    for interface in (template["domain"].get("devices") or {}).get("interfaces") or []:
        interface.pop("macAddress", None)
    return machine, claims


async def _restore_disk(session: Session, repository: Repository, disk: DiskPoint, target: tuple[str, str]) -> None:
    """A DataVolume that takes an upload, and the disk's bytes into it."""
    name, storage_class = target
    storage: Object = {"resources": {"requests": {"storage": str(disk.size_bytes)}}}
    storage |= {"storageClassName": storage_class} if storage_class else {}
    await session.client.create(
        register.DATA_VOLUME,
        {
            "apiVersion": register.DATA_VOLUME.api_version,
            "kind": "DataVolume",
            "metadata": {
                "name": name,
                "namespace": session.namespace,
                "annotations": {"cdi.kubevirt.io/storage.bind.immediate.requested": "true"},
            },
            "spec": {"source": {"upload": {}}, "storage": storage},
        },
    )
    opened = await asyncio.to_thread(Disk, repository, disk)
    with output.Progress(f"disk {disk.volume}") as progress:
        await _until_ready(session, name, progress)
        answer = await session.client.create(
            register.UPLOAD_TOKEN_REQUEST,
            {
                "apiVersion": register.UPLOAD_TOKEN_REQUEST.api_version,
                "kind": "UploadTokenRequest",
                "metadata": {"name": name, "namespace": session.namespace},
                "spec": {"pvcName": name},
            },
        )

        async def blocks() -> AsyncIterator[bytes]:
            at = 0
            while at < opened.size_bytes:
                data = await asyncio.to_thread(opened.read, at, _CHUNK)
                yield data
                at += len(data)
                progress.show(f"{output.size(at)} of {output.size(opened.size_bytes)}", at / opened.size_bytes)

        await session.client.upload("/v1beta1/upload", answer["status"]["token"], blocks())
        progress.show("restored", 1.0)


async def _until_ready(session: Session, name: str, progress: output.Progress) -> None:
    try:
        async with asyncio.timeout(_UPLOAD_SECONDS):
            while True:
                found = await session.client.get(register.DATA_VOLUME, session.namespace, name)
                phase = (found.get("status") or {}).get("phase", "Pending")
                if phase == "UploadReady":
                    return
                progress.show(f"preparing its volume ({phase})")
                await asyncio.sleep(0.3)
    except TimeoutError:
        raise click.ClickException(f"DataVolume {name} does not become ready for its data") from None

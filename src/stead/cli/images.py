"""`stead image list|add|remove|build`: the images that machines are made from, as DataSources in one namespace.

A catalogue image becomes a DataImportCron, which keeps its DataSource fresh. A file or URL becomes a DataVolume and a
DataSource that points to it; a file is uploaded through the API like `virtctl image-upload` does, so this works from
any machine that reaches the API. `build` makes the golden image from this host's own distribution.
"""

from __future__ import annotations

import asyncio
import gzip
import lzma
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click
import zstandard

from stead.cli import output
from stead.cli.session import Session, command
from stead.client.contract import Object, Selection
from stead.images import safety
from stead.kinds import register
from stead.kube import quantity
from stead.kube.errors import ApiError

NAMESPACE = "kubevirt-os-images"
LABELS = "instancetype.kubevirt.io/default-"
#: The golden image's second name: manifests that use it work on every host, whatever its release.
GOLDEN_ALIAS = "golden"
_CHUNK = 1024 * 1024
_HEAD = 1024 * 1024


@click.group()
def image() -> None:
    """Images that machines are made from."""


@image.command("list")
@click.option("-o", "--output", "form", type=output.FORMATS, default="table")
@click.option("--available", is_flag=True, help="Also the catalogue's images that are not added yet.")
@command
async def list_images(session: Session, form: str, available: bool) -> None:
    """Images that are there, and how ready they are."""
    sources = (await session.client.list(register.DATA_SOURCE, Selection(NAMESPACE))).items
    if form in ("json", "yaml", "name"):
        output.print_objects(sources, form)
        return
    disks = {
        item["metadata"]["name"]: item
        for item in (await session.client.list(register.DATA_VOLUME, Selection(NAMESPACE))).items
    }
    rows = [_row(source, disks) for source in sources]
    if available:
        from stead.images import catalogue

        known = {source["metadata"]["name"] for source in sources}
        rows += [
            [entry.name, "available", "", entry.preference, f"stead image add {entry.name}"]
            for entry in catalogue.PUBLISHED
            if entry.name not in known
        ]
    headers = ["NAME", "STATUS", "SIZE", "PREFERENCE", "MESSAGE"]
    hint = "No images yet: `stead image build`, `stead image add NAME --from FILE`, `stead image list --available`."
    click.echo(output.table(headers, rows) if rows else hint)


def _row(source: Object, disks: dict[str, Object]) -> list[Any]:
    meta = source["metadata"]
    ready: Object = next((c for c in source.get("status", {}).get("conditions", []) if c["type"] == "Ready"), {})
    claim = source.get("spec", {}).get("source", {}).get("pvc", {}).get("name", "")
    claim = claim or source.get("status", {}).get("source", {}).get("pvc", {}).get("name", "")
    disk = disks.get(claim, {})
    state = disk.get("status", {})
    word = "Ready" if ready.get("status") == "True" else state.get("phase", "Pending")
    progress = state.get("progress", "")
    if word != "Ready" and progress not in ("", "N/A"):
        word = f"{word} {progress}"
    requested = disk.get("spec", {}).get("storage", {}).get("resources", {}).get("requests", {}).get("storage", "")
    message = "" if ready.get("status") == "True" else ready.get("message", "")
    volume = output.size(float(quantity.parse(requested).value)) if requested else ""
    return [meta["name"], word, volume, meta.get("labels", {}).get(f"{LABELS}preference", ""), message]


@image.command()
@click.argument("name")
@click.option(
    "--from", "origin", help="A disk image FILE (qcow2, raw, vmdk, vdi, vhd, vhdx, also .gz .xz .zst) or URL."
)
@click.option("--size", default="", help="Size of the image's volume; else the image's own (files) or 20Gi (URLs).")
@click.option("--instancetype", default="", help="Default size of machines made from it.")
@click.option("--preference", default="", help="Default preference, such as ubuntu or windows.11.")
@click.option("--wait/--no-wait", default=True, help="Return when it is ready.")
@command
async def add(
    session: Session, name: str, origin: str | None, size: str, instancetype: str, preference: str, wait: bool
) -> None:
    """Add image NAME: from the catalogue, or --from a FILE or URL."""
    from stead.images import catalogue

    entry = catalogue.find(name)
    defaults = {
        f"{LABELS}instancetype": instancetype or (entry.instancetype if entry else "u1.medium"),
        f"{LABELS}preference": preference or (entry.preference if entry else "linux"),
    }
    if origin is None:
        if entry is None:
            raise click.ClickException(
                f"{name} is not in the catalogue (`stead image list --available`); name a file or URL with --from"
            )
        for item in catalogue.objects(entry, NAMESPACE):
            await session.apply(register.resource_for(item["kind"], _group(item)), item)
        click.echo(f"{entry.name}: will be imported from {entry.origin}; `stead image list` shows how far it is.")
        return
    if "://" in origin:
        source: Object = {"registry": {"url": origin}} if origin.startswith("docker://") else {"http": {"url": origin}}
        await _publish(session, name, source, size or "20Gi", defaults)
    else:
        path = Path(origin)
        virtual = await asyncio.to_thread(_examine, path)
        await _publish(session, name, {"upload": {}}, size or str(virtual), defaults)
        await _upload(session, name, path)
    if wait:
        await _until_ready(session, name)


def _group(item: Object) -> str:
    return str(item["apiVersion"]).rpartition("/")[0]


def _examine(path: Path) -> int:
    """The virtual size of an image file, bytes, after the checks that the import repeats. Raises ClickException."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            kind = safety.sniff(head)
            if kind in safety.COMPRESSIONS:
                file.seek(0)
                with _opened(file, kind) as plain:
                    head = plain.read(_HEAD)
        found = safety.examine(head)
    except OSError as error:
        raise click.ClickException(f"cannot read {path}: {error.strerror}") from error
    except safety.UnsafeImage as error:
        raise click.ClickException(f"{path}: {error}") from error
    virtual = found.virtual_bytes
    if virtual < 0:
        if kind in safety.COMPRESSIONS:
            raise click.ClickException(f"{path} is a compressed raw image: say how large it is with --size")
        virtual = path.stat().st_size
    return -(-virtual // 2**20) * 2**20


def _opened(file: Any, kind: str) -> Any:
    if kind == "gz":
        return gzip.GzipFile(fileobj=file)
    if kind == "xz":
        return lzma.LZMAFile(file)
    return zstandard.ZstdDecompressor().stream_reader(file)


async def _publish(session: Session, name: str, source: Object, size: str, labels: dict[str, str]) -> None:
    """The DataVolume and the DataSource of an image. An existing image of that name is refused."""
    meta = {"name": name, "namespace": NAMESPACE, "labels": labels}
    annotations = {"cdi.kubevirt.io/storage.bind.immediate.requested": "true"}
    try:
        await session.client.create(
            register.DATA_VOLUME,
            {
                "apiVersion": register.DATA_VOLUME.api_version,
                "kind": "DataVolume",
                "metadata": {**meta, "annotations": annotations},
                "spec": {"source": source, "storage": {"resources": {"requests": {"storage": size}}}},
            },
        )
    except ApiError as error:
        if error.reason == "AlreadyExists":
            raise click.ClickException(f"image {name} exists already; `stead image remove {name}` first") from error
        raise
    await session.apply(
        register.DATA_SOURCE,
        {
            "apiVersion": register.DATA_SOURCE.api_version,
            "kind": "DataSource",
            "metadata": meta,
            "spec": {"source": {"pvc": {"name": name, "namespace": NAMESPACE}}},
        },
    )


async def _upload(session: Session, name: str, path: Path) -> None:
    """Wait until the volume takes data, then send the file, with a bar."""
    with output.Progress(f"image {name}") as progress:
        async with asyncio.timeout(120):
            while True:
                disk = await session.client.get(register.DATA_VOLUME, NAMESPACE, name)
                phase = disk.get("status", {}).get("phase", "Pending")
                if phase in ("UploadReady", "Succeeded"):
                    break
                progress.show(f"preparing its volume ({phase})")
                await asyncio.sleep(0.3)
        answer = await session.client.create(
            register.UPLOAD_TOKEN_REQUEST,
            {
                "apiVersion": register.UPLOAD_TOKEN_REQUEST.api_version,
                "kind": "UploadTokenRequest",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"pvcName": name},
            },
        )
        total = path.stat().st_size

        async def blocks() -> AsyncIterator[bytes]:
            sent = 0
            with path.open("rb") as file:
                while data := await asyncio.to_thread(file.read, _CHUNK):
                    yield data
                    sent += len(data)
                    progress.show(f"{output.size(sent)} of {output.size(total)}", sent / total)

        await session.client.upload("/v1beta1/upload", answer["status"]["token"], blocks())
        progress.show("stored", 1.0)


async def _until_ready(session: Session, name: str) -> None:
    with output.Progress(f"image {name}") as progress:
        while True:
            source = await session.client.get(register.DATA_SOURCE, NAMESPACE, name)
            conditions = {c["type"]: c for c in source.get("status", {}).get("conditions", [])}
            if conditions.get("Ready", {}).get("status") == "True":
                break
            disk = await session.client.get(register.DATA_VOLUME, NAMESPACE, name)
            state = disk.get("status", {})
            running: Object = next((c for c in state.get("conditions", []) if c["type"] == "Running"), {})
            if state.get("phase") == "Failed":
                raise click.ClickException(f"image {name}: {running.get('message') or 'the import failed'}")
            done = state.get("progress", "").rstrip("%")
            fraction = float(done) / 100 if done.replace(".", "", 1).isdigit() else None
            trouble = running.get("message", "") if running.get("reason") == "Error" else ""
            progress.show(trouble or state.get("phase", "Pending"), fraction)
            await asyncio.sleep(0.3)
    click.echo(f"image {name} is ready")


@image.command()
@click.argument("names", nargs=-1, required=True)
@command
async def remove(session: Session, names: tuple[str, ...]) -> None:
    """Remove images. Machines made from them keep their own disks."""
    for name in names:
        found = False
        for resource in (register.DATA_IMPORT_CRON, register.DATA_SOURCE, register.DATA_VOLUME):
            try:
                await session.client.delete(resource, NAMESPACE, name)
                found = True
            except ApiError as error:
                if error.reason != "NotFound":
                    raise
        if not found:
            raise click.ClickException(f"there is no image {name}")
        click.echo(f"image {name} removed")


@image.command()
@click.option("--rebuild", is_flag=True, help="Make it anew although there is one.")
@command
async def build(session: Session, rebuild: bool) -> None:
    """Make the golden image: a minimal Debian from this host's own package sources (root; minutes)."""
    from stead.images import golden

    if os.geteuid() != 0:
        raise click.ClickException("image build needs root: sudo stead image build")
    release = golden.host_release()
    name = release.name
    folder = session.settings.state_dir / "golden"
    folder.mkdir(mode=0o755, exist_ok=True)
    target = folder / f"{name}.qcow2"
    if rebuild or not target.exists():
        with output.Progress(f"image {name}") as progress:
            try:
                await golden.build(target, progress.show)
            except golden.GoldenError as error:
                raise click.ClickException(str(error)) from error
    labels = {f"{LABELS}instancetype": "u1.medium", f"{LABELS}preference": release.id}
    existing = {item["metadata"]["name"] for item in (await session.client.list(
        register.DATA_VOLUME, Selection(NAMESPACE))).items}  # fmt: skip
    if name in existing and rebuild:
        await session.client.delete(register.DATA_SOURCE, NAMESPACE, name)
        await session.client.delete(register.DATA_VOLUME, NAMESPACE, name)
        with output.Progress(f"image {name}") as progress:
            await session.until_gone(register.DATA_VOLUME, NAMESPACE, name, 120, progress)
            existing.discard(name)
    if name not in existing:
        virtual = await asyncio.to_thread(_examine, target)
        await _publish(session, name, {"upload": {}}, str(virtual), labels)
    phase = (await session.client.get(register.DATA_VOLUME, NAMESPACE, name)).get("status", {}).get("phase")
    if phase != "Succeeded":
        await _upload(session, name, target)
    await session.apply(
        register.DATA_SOURCE,
        {
            "apiVersion": register.DATA_SOURCE.api_version,
            "kind": "DataSource",
            "metadata": {"name": GOLDEN_ALIAS, "namespace": NAMESPACE, "labels": labels},
            "spec": {"source": {"dataSource": {"name": name, "namespace": NAMESPACE}}},
        },
    )
    await _until_ready(session, name)

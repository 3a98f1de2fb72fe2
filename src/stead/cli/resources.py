"""`stead apply|get|delete|events|wait`: objects of any kind, as kubectl names them but without kubectl.

`apply` creates what is absent and merges what is there, remembering nothing: the server keeps what the file does not
name. Each command reports object by object, goes on after a failure, and exits with 1 if any failed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from stead.cli import output
from stead.cli.session import Session, command, resource_named
from stead.client.contract import Object, Selection
from stead.kube.encoding import decode_documents
from stead.kube.errors import ApiError

#: Longest manifest file that is read, bytes.
MAX_FILE = 64 * 1024 * 1024


def read_manifests(source: str) -> list[Object]:
    """Objects of a YAML or JSON file (`-` = standard input), lists flattened."""
    try:
        data = sys.stdin.buffer.read(MAX_FILE + 1) if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise click.ClickException(f"cannot read {source}: {error.strerror}") from error
    if len(data) > MAX_FILE:
        raise click.ClickException(f"{source} is larger than {output.size(MAX_FILE)}")
    try:
        documents = decode_documents(data)
    except ApiError as error:
        raise click.ClickException(f"{source}: {error.message}") from error
    objects: list[Object] = []
    for document in documents:
        objects.extend(document["items"] if document.get("kind") == "List" else [document])
    for item in objects:
        if not isinstance(item, dict) or not item.get("kind") or not isinstance(item.get("metadata"), dict):
            raise click.ClickException(f"{source}: every document needs apiVersion, kind and metadata")
    return objects


@click.command()
@click.option("-f", "--filename", "files", multiple=True, required=True, help="File with manifests; - reads stdin.")
@click.option("--dry-run", is_flag=True, help="Let the server check everything, write nothing.")
@command
async def apply(session: Session, files: tuple[str, ...], dry_run: bool) -> None:
    """Create or update the objects that files declare."""
    failed = False
    for source in files:
        for item in read_manifests(source):
            resource = resource_named(item["kind"], item.get("apiVersion", ""))
            if resource.namespaced:
                item["metadata"].setdefault("namespace", session.namespace)
            label = f"{resource.singular}/{item['metadata'].get('name', item['metadata'].get('generateName', ''))}"
            try:
                done = await session.apply(resource, item, dry_run=dry_run)
            except ApiError as error:
                click.echo(f"{label}: {error.message}", err=True)
                failed = True
                continue
            click.echo(f"{label} {done}{' (dry run)' if dry_run else ''}")
    if failed:
        raise SystemExit(1)


@click.command()
@click.argument("kind")
@click.argument("names", nargs=-1)
@click.option("-l", "--selector", default="", help="Label selector.")
@click.option("-A", "--all-namespaces", is_flag=True)
@click.option("-o", "--output", "form", type=output.FORMATS, default="table")
@click.option("-w", "--watch", is_flag=True, help="After listing, print changes until interrupted.")
@command
async def get(
    session: Session, kind: str, names: tuple[str, ...], selector: str, all_namespaces: bool, form: str, watch: bool
) -> None:
    """Print objects of a KIND (vm, vmi, dv, pvc, node, …)."""
    resource = resource_named(kind)
    namespace = None if all_namespaces or not resource.namespaced else session.namespace
    version = ""
    if names:
        objects = [await session.client.get(resource, namespace, name) for name in names]
    else:
        listed = await session.client.list(resource, Selection(namespace, selector))
        objects, version = listed.items, listed.resource_version
    if form in ("json", "yaml", "name"):
        output.print_objects(objects, form, single=len(names) == 1)
    else:
        headers, rows = await session.rows(resource, objects, wide=form == "wide", namespaces=all_namespaces)
        click.echo(output.table(headers, rows) if rows else f"No {resource.plural} in {namespace or 'any namespace'}.")
    if watch:
        async for event in session.client.watch(resource, Selection(namespace, selector), version):
            if event.type in ("ADDED", "MODIFIED", "DELETED") and (
                not names or event.object["metadata"]["name"] in names
            ):
                _, rows = await session.rows(resource, [event.object], wide=form == "wide", namespaces=all_namespaces)
                click.echo("   ".join(str(cell) for cell in (*rows[0], event.type.lower())))


@click.command()
@click.argument("kind", required=False)
@click.argument("names", nargs=-1)
@click.option("-f", "--filename", "files", multiple=True, help="Delete what these files declare.")
@click.option("--cascade", type=click.Choice(["background", "foreground", "orphan"]), default="background")
@click.option("--wait/--no-wait", default=True, help="Return when the objects are gone.")
@click.option("--timeout", default=300, show_default=True, help="Seconds to wait.")
@command
async def delete(
    session: Session,
    kind: str | None,
    names: tuple[str, ...],
    files: tuple[str, ...],
    cascade: str,
    wait: bool,
    timeout: int,
) -> None:
    """Delete objects: KIND NAME…, or those of files. Deleting a machine deletes the disks it owns."""
    if bool(kind) == bool(files) or (kind and not names):
        raise click.UsageError("give either KIND and NAMEs, or -f FILE")
    targets: list[tuple[Any, str | None, str]] = []
    if kind:
        resource = resource_named(kind)
        targets = [(resource, session.namespace if resource.namespaced else None, name) for name in names]
    for source in files:
        for item in read_manifests(source):
            resource = resource_named(item["kind"], item.get("apiVersion", ""))
            namespace = item["metadata"].get("namespace", session.namespace) if resource.namespaced else None
            targets.append((resource, namespace, item["metadata"]["name"]))
    failed = False
    for resource, namespace, name in targets:
        label = f"{resource.singular}/{name}"
        try:
            await session.client.delete(resource, namespace, name, propagation=cascade.capitalize())
            if wait:
                with output.Progress(f"deleting {label}") as progress:
                    await session.until_gone(resource, namespace, name, timeout, progress)
            click.echo(f"{label} deleted")
        except ApiError as error:
            click.echo(f"{label}: {error.message}", err=True)
            failed = True
    if failed:
        raise SystemExit(1)


@click.command()
@click.argument("name", required=False)
@click.option("-A", "--all-namespaces", is_flag=True)
@click.option("-w", "--watch", is_flag=True, help="Go on printing new events.")
@click.option("-o", "--output", "form", type=output.FORMATS, default="table")
@command
async def events(session: Session, name: str | None, all_namespaces: bool, watch: bool, form: str) -> None:
    """What happened, oldest first; NAME limits it to one object."""
    resource = resource_named("Event", "v1")
    selection = Selection(
        None if all_namespaces else session.namespace, fields=f"involvedObject.name={name}" if name else ""
    )
    listed = await session.client.list(resource, selection)
    found = sorted(listed.items, key=_event_time)
    if form in ("json", "yaml", "name"):
        output.print_objects(found, form)
    elif found:
        click.echo(output.table(["AGE", "TYPE", "REASON", "OBJECT", "MESSAGE"], [_event_row(item) for item in found]))
    elif not watch:
        click.echo("No events.")
    if watch:
        async for event in session.client.watch(resource, selection, listed.resource_version):
            if event.type in ("ADDED", "MODIFIED"):
                click.echo("   ".join(str(cell) for cell in _event_row(event.object)))


def _event_time(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp", ""))


def _event_row(event: Object) -> list[Any]:
    involved = event.get("involvedObject", {})
    subject = f"{involved.get('kind', '').lower()}/{involved.get('name', '')}"
    count = event.get("count", 1)
    message = event.get("message", "") + (f" (x{count})" if count > 1 else "")
    return [output.age(_event_time(event)), event.get("type"), event.get("reason"), subject, message]


@click.command()
@click.argument("name")
@click.option(
    "--for", "goal", type=click.Choice(["running", "agent", "stopped", "deleted"]), default="running", show_default=True
)
@click.option("--timeout", default=600, show_default=True, help="Seconds to wait.")
@command
async def wait(session: Session, name: str, goal: str, timeout: int) -> None:
    """Wait, with live progress, until machine NAME is running, its guest agent answers, it is stopped or deleted."""
    with output.Progress(name) as progress:
        try:
            async with asyncio.timeout(timeout):
                while True:
                    reached, text, fraction = await session.machine_progress(name, goal)
                    progress.show(text, fraction)
                    if reached:
                        break
                    await asyncio.sleep(0.5)
        except TimeoutError as error:
            raise click.ClickException(
                f"{name} is not {goal} after {timeout} s; `stead info {name}` and `stead events {name}` say why"
            ) from error
    click.echo(f"{name}: {text}")

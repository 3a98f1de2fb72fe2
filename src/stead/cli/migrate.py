"""`stead migrate NAME`, `stead migrate-cancel NAME`: move a running machine to another host, and think better of it."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click

from stead.cli.session import Session, command
from stead.client.contract import Object, Selection
from stead.kinds import register
from stead.kube.errors import ApiError

_FINAL = ("Succeeded", "Failed")
_BAR = 24
_POLL_SECONDS = 0.5
_MIB = 1 << 20


@click.command()
@click.argument("name")
@click.option("--to", "host", default="", help="The host to go to; else one is chosen as for a new machine.")
@click.option("--watch", is_flag=True, help="Show how far it is, and end with it: 0 when it has moved, else 1.")
@command
async def migrate(session: Session, name: str, host: str, watch: bool) -> None:
    """Move a running machine to another host; its guest goes on."""
    spec: Object = {"vmiName": name}
    if host:
        await session.client.get(register.NODE, None, host)
        spec["addedNodeSelector"] = {"kubernetes.io/hostname": host}
    body = {
        "apiVersion": register.MIGRATION.api_version,
        "kind": register.MIGRATION.kind,
        "metadata": {"generateName": f"{name}-", "namespace": session.namespace},
        "spec": spec,
    }
    made = await session.client.create(register.MIGRATION, body)
    click.echo(f"{name} is to move ({made['metadata']['name']}).")
    if watch:
        await _follow(session, name, made["metadata"]["name"])


async def _follow(session: Session, name: str, migration: str) -> None:
    shown = ""
    while True:
        found = await session.client.get(register.MIGRATION, session.namespace, migration)
        status = found.get("status") or {}
        phase = str(status.get("phase") or "Pending")
        line = f"{name}: {phase}"
        if phase == "Running":
            line = f"{name}: {progress_line(await _counters(session, name))}"
        if sys.stdout.isatty():
            click.echo(f"\r\033[K{line}", nl=phase in _FINAL)
        elif line != shown:
            click.echo(line)
        shown = line
        if phase in _FINAL:
            break
        await asyncio.sleep(_POLL_SECONDS)
    state = status.get("migrationState") or {}
    if phase == "Failed":
        raise click.ClickException(f"{name} stays where it is: {state.get('failureReason', 'no reason was given')}")
    click.echo(f"{name} runs on {state.get('targetNode')} now.")


async def _counters(session: Session, name: str) -> dict[str, Any]:
    """What the source says; nothing in the moments when the machine changes hands."""
    path = f"/apis/subresources.stead.io/v1/namespaces/{session.namespace}/virtualmachineinstances/{name}/stats"
    try:
        found: dict[str, Any] = await session.client.request_json("GET", path)
    except ApiError:
        return {}
    return found


def progress_line(counters: dict[str, Any]) -> str:
    """A bar, what is left, how fast the guest writes memory, and the pause that is expected."""
    total, remaining = counters.get("migration.total_bytes", 0.0), counters.get("migration.remaining_bytes", 0.0)
    if not total:
        return "Running"
    share = min(1.0, max(0.0, 1.0 - remaining / total))
    bar = "#" * round(share * _BAR)
    dirty = counters.get("migration.dirty_bytes_per_second", 0.0) / _MIB
    pause = counters.get("migration.expected_downtime_ms", 0.0)
    return (
        f"[{bar:<{_BAR}}] {100 * share:3.0f} %, {remaining / _MIB:.0f} MiB left, guest writes {dirty:.1f} MiB/s, "
        f"pause about {pause:.0f} ms"
    )


@click.command("migrate-cancel")
@click.argument("name")
@command
async def migrate_cancel(session: Session, name: str) -> None:
    """End a machine's migration; it stays where it is."""
    found = (await session.client.list(register.MIGRATION, Selection(session.namespace))).items
    for migration in found:
        over = (migration.get("status") or {}).get("phase") in _FINAL
        if migration["spec"].get("vmiName") == name and not over:
            await session.client.delete(register.MIGRATION, session.namespace, migration["metadata"]["name"])
            click.echo(f"The migration of {name} is being cancelled.")
            return
    raise click.ClickException(f"{name} is not being migrated")

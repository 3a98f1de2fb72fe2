"""`stead store backup|restore|copy|open-copy`: the whole store as a file, and from SQLite to etcd or back.

These run on the plane's host by root and read the settings, for where the store is and how etcd is spoken to. A backup
may be taken while planes run; restore and copy want them stopped, and say so where they can see that they are not.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from stead import installation
from stead.cli.rotate import own_settings
from stead.cli.session import current_options
from stead.config import ConfigError, Settings
from stead.store import backups, copies, keyring, location, moving
from stead.store.contract import StoreFailure
from stead.store.location import Location
from stead.store.migrations import TooNew

T = TypeVar("T")

_REPLACE = click.option(
    "--replace", is_flag=True, help="Also when the target holds a store: put this one in its place."
)


@click.group()
def store() -> None:
    """All that is declared: back it up, restore it, move it between SQLite and etcd."""


def _settings() -> Settings:
    settings = current_options().settings()
    if settings.user and os.geteuid() != 0:
        raise click.ClickException("the store is handled on the plane's own host by root: sudo stead store …")
    return settings


def _place(settings: Settings, url: str | None = None) -> Location:
    try:
        return location.of(settings, url)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error


def _done(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except (StoreFailure, TooNew, ConfigError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _need_stopped(settings: Settings) -> None:
    if installation.running_pid(settings, "plane"):
        raise click.ClickException("the plane of this host runs: stop it, and those of other hosts, first (stead down)")


@store.command("backup")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def backup(file: Path) -> None:
    """Write all that the store holds into FILE, while Stead runs.

    Secrets in it are sealed: keep the keys that open them too, but elsewhere (plane/pki/secrets.key in `state_dir`).
    """
    settings = _settings()
    place = _place(settings)
    found = _done(moving.contents(place))
    try:
        sha256 = backups.write(file, found)
    except FileExistsError:
        raise click.ClickException(f"{file} exists; a backup is never written over") from None
    except OSError as error:
        raise click.ClickException(f"{file}: {error}") from error
    click.echo(f"{len(found.entries)} objects of {place} at revision {found.revision} are in {file}; SHA-256 {sha256}")


@store.command("restore")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@_REPLACE
def restore(file: Path, replace: bool) -> None:
    """Make what FILE holds the contents of the store. Stop every plane before.

    Objects get new resourceVersions, above all that anybody has seen; clients that watch list anew by themselves.
    """
    settings = _settings()
    _need_stopped(settings)
    place = _place(settings)

    async def work() -> str:
        found = backups.read(file)
        return await moving.put_into(
            place, found.entries, found.revision + moving.LEAP, f"the restore of {file}", replace=replace
        )

    click.echo(f"{place} holds what {file} holds; SHA-256 {_done(work())}")


@store.command("copy")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@_REPLACE
def copy(source: str, target: str, replace: bool) -> None:
    """Copy the store FROM one place TO another: `sqlite` (this host's file) or `etcd://…`. Stop every plane before."""
    settings = _settings()
    _need_stopped(settings)
    before, after = _place(settings, source), _place(settings, target)
    if before == after:
        raise click.ClickException("FROM and TO are the same store")

    async def work() -> tuple[int, str]:
        found = await moving.contents(before)
        sha256 = await moving.put_into(after, found.entries, found.revision, f"the copy of {before}", replace=replace)
        again = await moving.contents(before)
        if again.entries != found.entries:
            raise StoreFailure(f"{before} was written to meanwhile: stop every plane, and copy again with --replace")
        return len(found.entries), sha256

    count, sha256 = _done(work())
    click.echo(f"{count} objects copied from {before} to {after}, and read back; SHA-256 {sha256}")
    click.echo(f'Now let every plane use it: store = "{after if after.members else ""}" in its settings.')


@store.command("open-copy")
@click.argument("copy", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("target", type=click.Path(path_type=Path))
def open_copy(copy: Path, target: Path) -> None:
    """Write COPY (store.db.format-N) to TARGET with its Secrets in plain, to go back to an earlier release."""
    settings = own_settings()
    try:
        copies.open_copy(copy, target, keyring.read(*settings.secrets_key_source))
    except (StoreFailure, keyring.KeyringError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{target} holds Secrets in plain: use it as store.db, and remove it elsewhere.")

"""`stead store open-copy`: a copy of the store as a release of before Secrets were sealed can read it. By root."""

from __future__ import annotations

from pathlib import Path

import click

from stead.cli.rotate import own_settings


@click.group()
def store() -> None:
    """The store of this host's plane."""


@store.command("open-copy")
@click.argument("copy", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("target", type=click.Path(path_type=Path))
def open_copy(copy: Path, target: Path) -> None:
    """Write COPY (store.db.format-N) to TARGET with its Secrets in plain, to go back to an earlier release."""
    from stead.store import copies, keyring
    from stead.store.contract import StoreFailure

    settings = own_settings()
    try:
        copies.open_copy(copy, target, keyring.read(*settings.secrets_key_source))
    except (StoreFailure, keyring.KeyringError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{target} holds Secrets in plain: use it as store.db, and remove it elsewhere.")

"""`stead rotate ca|secrets-key`: new keys for old, on Stead's host, by root. Guests go on.

Both are safe to be interrupted at any line and to be run again. Running processes take the new files up by themselves;
where a fresh start is quicker, `stead up` gives it to them.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click

from stead import installation, pki
from stead.cli.session import current_options
from stead.config import Settings


@click.group()
def rotate() -> None:
    """New keys for old: the certificate authority, the key that seals Secrets."""


@rotate.command("ca")
@click.option("--finish", is_flag=True, help="Issue by the new authority, and trust the old one no more.")
def ca(finish: bool) -> None:
    """Trust a new authority beside the old one; with --finish, the new one alone.

    Between the two, give users new kubeconfigs (`stead user kubeconfig`), which are good before and after; those of
    before are of no use after --finish. Stead does all this by itself in the last third of an authority's ten years.
    """
    settings = own_settings()
    files = installation.Files.of(settings)
    waiting = pki.next_key(files.authority).exists()
    if not finish:
        pki.introduce(files.authority, "stead")
        installation.prepare(settings)
        if not waiting:
            start_anew(settings, "plane", "agent")
        again = "A new authority was introduced already" if waiting else "A new authority is trusted beside the old one"
        click.echo(f"{again}; `stead rotate ca --finish` lets go of the old one.")
        return
    if not waiting and len(pki.trusted(files.authority)) == 1:
        raise click.ClickException("there is one authority only; `stead rotate ca` introduces another")
    late = [name for name in ("plane", "agent") if _is_behind(settings, name, files.ca)]
    if late:
        raise click.ClickException(
            f"the {' and the '.join(late)} has not taken the new authority up yet: wait a minute"
        )
    if waiting:
        pki.switch(files.authority)
    pki.drop(files.authority)
    installation.prepare(settings)
    start_anew(settings, "plane", "agent")
    click.echo("Certificates are issued by the new authority; the old one is trusted no more.")


@rotate.command("secrets-key")
def secrets_key() -> None:
    """Put a new key above the old ones; the plane seals every Secret with it at its next start."""
    from stead.store import keyring

    settings = own_settings()
    if settings.secrets_key_tpm:
        raise click.ClickException("the keys lie in the TPM: seal them anew there with another one above the old ones")
    if settings.secrets_key_command:
        raise click.ClickException("the keys come from secrets_key_command: let it print a new one above the old ones")
    path = settings.secrets_key
    try:
        text = path.read_text(encoding="utf-8")
        keyring.parse(text, str(path))
    except (OSError, keyring.KeyringError) as error:
        raise click.ClickException(str(error)) from error
    owner = path.stat()
    pki.write_private(path, f"{keyring.new_key()}\n{text}".encode(), owner=(owner.st_uid, owner.st_gid))
    started = start_anew(settings, "plane")
    told = "the plane starts anew and seals every Secret with it" if started else "the plane seals with it once it runs"
    click.echo(f"{path} begins with a new key; {told}. Keep a copy of the file apart from the store's backups.")


def own_settings() -> Settings:
    """Settings of the Stead on this host, for root alone. Raises ClickException."""
    if os.geteuid() != 0:
        raise click.ClickException("keys are used on Stead's own host by root: sudo stead …")
    settings = current_options().settings()
    if not settings.plane_dir.exists():
        raise click.ClickException(f"there is no Stead on this host ({settings.plane_dir} does not exist)")
    return settings


def _is_behind(settings: Settings, name: str, bundle: Path) -> bool:
    """Whether that process runs since before the trusted authorities changed."""
    started = installation.started_at(settings, name)
    return 0 < started < bundle.stat().st_mtime


def start_anew(settings: Settings, *names: str) -> bool:
    """End processes that `stead up` starts again at once; False when it does not run."""
    if not installation.running_pid(settings, "up"):
        return False
    for name in names:
        pid = installation.running_pid(settings, name)
        if pid:
            os.kill(pid, signal.SIGTERM)
    return True

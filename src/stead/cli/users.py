"""`stead user add|list|remove|kubeconfig|password`: who may use this installation, by certificate or by password.

A user is an object (`kinds.accounts`), written through the API; certificates are signed here, on the host, by root, who
alone can read the authority's key. What a user may do is said by roles, not here.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import click

from stead import installation, pki
from stead.cli import output
from stead.cli.session import Session, command
from stead.client.contract import Object, Selection
from stead.kinds import accounts, register
from stead.kinds.accounts import Account
from stead.kube.errors import ApiError

_OUTPUT = click.option("-o", "--output", "target", type=click.Path(path_type=Path, dir_okay=False),
                       help="Where the kubeconfig goes (mode 0600); else standard output.")  # fmt: skip
_DAYS = click.option(
    "--days", default=365, show_default=True, type=click.IntRange(1, 3650), help="Life of the certificate."
)
_SERVER = click.option("--server", default="", help="URL of the API as the user reaches it; else the one of this host.")


@click.group()
def user() -> None:
    """People and programs that may use this Stead. Roles say what each may do."""


@user.command("add")
@click.argument("name")
@click.option("--group", "groups", multiple=True, help="A group of the user; repeat it for more.")
@click.option("--password", "ask", is_flag=True, help="Ask for a password, for `stead login`; no kubeconfig then.")
@click.option("--password-stdin", "read", is_flag=True, help="Read that password from standard input.")
@_DAYS
@_SERVER
@_OUTPUT
@command
async def add(
    session: Session, name: str, groups: tuple[str, ...], ask: bool, read: bool, days: int, server: str,
    target: Path | None,
) -> None:  # fmt: skip
    """Make a user and, without a password, a kubeconfig with a client certificate."""
    refusal = accounts.name_refusal(name, groups)
    if refusal:
        raise click.ClickException(refusal)
    password = _password(ask, read)
    if not password:
        _authority(session)  # before anything is made
    account = Account(name, groups, password=_hashed(password) if password else "")
    try:
        made = await session.client.create(register.SECRET, accounts.user_object(account))
    except ApiError as error:
        if error.reason == "AlreadyExists":
            raise click.ClickException(
                f"user {name} exists; `stead user kubeconfig {name}` gives out another"
            ) from error
        raise
    if password:
        click.echo(f"user {name} added; they log in with `stead login --user {name}`")
    else:
        _give(session, _account(made), days, server, target)


@user.command("kubeconfig")
@click.argument("name")
@_DAYS
@_SERVER
@_OUTPUT
@command
async def kubeconfig(session: Session, name: str, days: int, server: str, target: Path | None) -> None:
    """Give out a kubeconfig with a new certificate; older ones stay good until they run out."""
    _give(session, await _find(session, name), days, server, target)


@user.command("password")
@click.argument("name")
@click.option("--password-stdin", "read", is_flag=True, help="Read it from standard input.")
@command
async def password(session: Session, name: str, read: bool) -> None:
    """Set a password. Every session of the user ends."""
    await _find(session, name)
    given = _password(True, read)
    patch = {"stringData": {"password": _hashed(given)}}
    await session.client.patch(register.SECRET, accounts.NAMESPACE, accounts.user_object_name(name), patch)
    click.echo(f"password of {name} set; sessions of before have ended")


@user.command("remove")
@click.argument("name")
@command
async def remove(session: Session, name: str) -> None:
    """Remove a user: every certificate and session of theirs is refused from now on."""
    await _find(session, name)
    for secret in await _secrets(session, accounts.SESSION_TYPE):
        login = accounts.login_from(secret)
        if login is not None and login.user == name:
            await _delete(session, secret["metadata"]["name"])
    await _delete(session, accounts.user_object_name(name))
    click.echo(f"user {name} removed")


@user.command("list")
@command
async def list_users(session: Session) -> None:
    """List users with their groups."""
    rows = []
    for secret in await _secrets(session, accounts.USER_TYPE):
        account = accounts.account_from(secret)
        if account is not None:
            how = "password" if account.password else "certificate"
            rows.append([account.name, ",".join(account.groups) or "-", how, secret["metadata"]["creationTimestamp"]])
    click.echo(output.table(["NAME", "GROUPS", "BY", "SINCE"], sorted(rows)))


def _give(session: Session, account: Account, days: int, server: str, target: Path | None) -> None:
    """Sign a certificate and hand the kubeconfig out."""
    files = _authority(session)
    identity = pki.Identity(account.name, account.groups, uri=accounts.URI_PREFIX + account.uid)
    certificate, key = pki.issue_pair(pki.for_users(files.authority), identity, datetime.timedelta(days=days))
    text = installation.kubeconfig(session.settings, files.ca.read_bytes(), certificate, key, account.name, server)
    if target is None:
        click.echo(text, nl=False)
    else:
        pki.write_private(target.absolute(), text.encode())
        click.echo(f"kubeconfig of {account.name} written to {target}")


def _authority(session: Session) -> installation.Files:
    files = installation.Files.of(session.settings)
    try:
        files.authority.key.read_bytes()
    except OSError as error:
        raise click.ClickException(
            f"certificates are signed on Stead's own host, as root: {files.authority.key}: {error.strerror}"
        ) from error
    return files


def _password(ask: bool, read: bool) -> str:
    if read:
        given = sys.stdin.readline().rstrip("\n")
    elif ask:
        given = str(click.prompt("Password", hide_input=True, confirmation_prompt=True))
    else:
        return ""
    if len(given) < 8:
        raise click.ClickException("a password has 8 characters at least")
    return given


def _hashed(password: str) -> str:
    from stead.server import passwords

    return passwords.hashed(password)


def _account(secret: Object) -> Account:
    account = accounts.account_from(secret)
    if account is None:
        raise click.ClickException(f"Secret {secret['metadata']['name']} describes no user")
    return account


async def _find(session: Session, name: str) -> Account:
    try:
        found = await session.client.get(register.SECRET, accounts.NAMESPACE, accounts.user_object_name(name))
    except ApiError as error:
        if error.reason == "NotFound":
            raise click.ClickException(f"there is no user {name}; `stead user list` shows who is") from error
        raise
    return _account(found)


async def _secrets(session: Session, kind: str) -> list[Object]:
    selection = Selection(namespace=accounts.NAMESPACE, fields=f"type={kind}")
    return (await session.client.list(register.SECRET, selection)).items


async def _delete(session: Session, name: str) -> None:
    try:
        await session.client.delete(register.SECRET, accounts.NAMESPACE, name)
    except ApiError as error:
        if error.reason != "NotFound":
            raise

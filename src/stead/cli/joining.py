"""`stead join`: make this host one of a Stead whose plane runs elsewhere; `stead token`: what lets a host in.

A token is a Secret (`server.bootstrap_tokens`), written through the API; what is printed carries the hash of the
authority's key, so that a host needs nothing else to know whom it talks to. `join` writes the host's keys and, into the
settings file, what the agent must know from then on.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import ipaddress
import os
import secrets
import urllib.parse
from pathlib import Path

import click
import msgspec

from stead import installation, pki
from stead.cli import output
from stead.cli.rotate import start_anew
from stead.cli.session import Session, command, current_options, kubeconfig_path
from stead.client import joining
from stead.client.contract import Object, Selection
from stead.client.kubeconfig import load
from stead.config import DEFAULT_FILE, ConfigError, Settings, remember
from stead.kinds import joins, register
from stead.kinds.accounts import NAMESPACE, decoded
from stead.kube import meta
from stead.kube.errors import ApiError

_TYPE = "bootstrap.kubernetes.io/token"
_PREFIX = "bootstrap-token-"
_UNITS = {"m": 60, "h": 3600, "d": 86400}


@click.command()
@click.argument("url")
@click.option("--token", required=True, help="As `stead token create` printed it.")
@click.option("--ca-hash", default="", help="Hash of the authority's key, sha256:…; else the one in the token.")
@click.option("--name", default="", help="This host's name in the API; else the setting, else the machine's own.")
@click.option("--address", default="", help="Address that the plane reaches this host by; else the one towards URL.")
@click.option("--no-start", is_flag=True, help="Do not start the agent.")
def join(url: str, token: str, ca_hash: str, name: str, address: str, no_start: bool) -> None:
    """Make this host one of the Stead at URL: https://HOST:6443. Machines that Stead places here run here."""
    if os.geteuid() != 0:
        raise click.ClickException("join needs root: sudo stead join")
    options = current_options()
    file = (options.config or Path(os.environ.get("STEAD_CONFIG") or DEFAULT_FILE)).absolute()
    settings = options.settings() if file.exists() or not options.config else Settings()
    _check_free(settings, url)
    wanted = joining.Asking(
        url=url, host=(name or settings.host).lower(), addresses=(address,) if address else _address_set(settings)
    )
    try:
        identity = asyncio.run(joining.join(wanted, joining.ticket_from(token, ca_hash)))
    except joining.NotJoined as error:
        raise click.ClickException(str(error)) from error
    except ApiError as error:
        raise click.ClickException(_refusal(error)) from error
    except (OSError, TimeoutError) as error:
        raise click.ClickException(f"cannot reach {url}: {error or type(error).__name__}") from error
    told = {"api_url": url.rstrip("/"), "host_name": wanted.host, "agent_address": identity.addresses[0]}
    try:
        remember(file, told)
    except (ConfigError, OSError) as error:
        raise click.ClickException(f"the host was let in, but its settings cannot be kept: {error}") from error
    joined = msgspec.structs.replace(settings, **told)
    installation.keep_identity(joined, identity.certificate, identity.key, identity.authorities)
    click.echo(f"This host is {wanted.host} of {url}; its settings: {file}")
    if start_anew(joined, "agent"):  # on what it was given now
        return
    if no_start:
        click.echo("Start its agent: stead up --detach, or systemctl enable --now stead")
        return
    from stead.cli import hosts

    hosts.start_detached(joined, file)


def _address_set(settings: Settings) -> tuple[str, ...]:
    """The address that the settings name, unless it is the default, which reaches nobody else."""
    usual = Settings().agent_address
    return () if settings.agent_address == usual else (settings.agent_address,)


def _check_free(settings: Settings, url: str) -> None:
    """Refuse a host that has a plane of its own, or belongs to another Stead. Raises click.ClickException."""
    if not url.startswith("https://"):
        raise click.ClickException(f"{url}: an https URL, such as https://stead.example.org:6443")
    if settings.is_joined and settings.api_url != url.rstrip("/"):
        raise click.ClickException(f"this host belongs to {settings.api_url}: `stead uninstall` first")
    if not settings.is_joined and (settings.plane_dir / "store.db").exists():
        raise click.ClickException(
            f"this host has a plane of its own ({settings.plane_dir}): `stead uninstall` first, "
            "or join with the settings of another installation (--config)"
        )


def _refusal(error: ApiError) -> str:
    if error.reason == "Unauthorized":
        return "the token is not good: used already, expired, revoked or mistyped; `stead token create` makes another"
    return error.message


@click.group()
def token() -> None:
    """Tokens that let a host join: each for one host, once, and not for long."""


@token.command("create")
@click.option("--ttl", default="1h", show_default=True, help="How long it is good: 30m, 12h, 7d.")
@click.option("--host", default="", help="Tie it to a host of that name; needed for one that exists already.")
@click.option("--server", default="", help="URL of the API as the host reaches it, for the line that is shown.")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "yaml", "name"]), default="table")
@command
async def create_token(session: Session, ttl: str, host: str, server: str, form: str) -> None:
    """Make a token and print the command that the new host runs."""
    seconds = seconds_of(ttl)
    options = current_options()
    endpoint = load(kubeconfig_path(options, session.settings), context=options.context)
    token_id, secret = secrets.token_hex(3), secrets.token_hex(16)
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    data = {
        "token-id": token_id,
        "token-secret-sha256": hashlib.sha256(secret.encode()).hexdigest(),
        "usage-bootstrap-authentication": "true",
        "auth-extra-groups": joins.GROUP,
        "expiration": meta.format_time(expires),
        **({"stead-host": host.lower()} if host else {}),
    }
    about = await session.client.request_json("GET", joins.ABOUT_PATH)
    pin = pki.fingerprints(str(about["authorities"]).encode())[0]
    await session.client.create(
        register.SECRET,
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": _TYPE,
            "metadata": {"name": _PREFIX + token_id, "namespace": NAMESPACE},
            "stringData": data,
        },
    )
    url, whole = server or endpoint.server, f"{token_id}.{secret}.{pin}"
    if form == "name":
        click.echo(whole)
    elif form != "table":
        told = {"id": token_id, "token": whole, "caHash": f"sha256:{pin}", "server": url, "expires": data["expiration"]}
        click.echo(output.dump(told, form))
    else:
        click.echo(f"stead join {url} --token {whole}")
        if is_loopback(url):
            click.echo(f"{url} is this host alone: set `listen_address`, or give --server.", err=True)
        click.echo(f"Good once, until {data['expiration']}; `stead token revoke {token_id}` ends it.", err=True)


def is_loopback(url: str) -> bool:
    """Whether a URL names the host itself, by address or as localhost."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def seconds_of(text: str) -> int:
    """Seconds of `30m`, `12h`, `7d`. Raises click.ClickException."""
    if text[:-1].isdigit() and text[-1] in _UNITS and 0 < int(text[:-1]) * _UNITS[text[-1]] <= 30 * 86400:
        return int(text[:-1]) * _UNITS[text[-1]]
    raise click.ClickException(f"--ttl {text}: a number and m, h or d, 30d at most")


@token.command("list")
@click.option("-o", "--output", "form", type=output.FORMATS, default="table")
@command
async def list_tokens(session: Session, form: str) -> None:
    """Tokens that were not used yet. Their secret halves are kept nowhere."""
    found = await _tokens(session)
    if form == "name":
        for secret in found:
            click.echo(secret["metadata"]["name"].removeprefix(_PREFIX))
        return
    told = [_told(secret) for secret in found]
    if form in ("json", "yaml"):
        click.echo(output.dump(told, form))
        return
    rows = [[each["id"], each["expires"], each["host"], output.age(each["created"])] for each in told]
    click.echo(output.table(["ID", "EXPIRES", "HOST", "AGE"], rows) if rows else "No tokens.")


@token.command("revoke")
@click.argument("ids", nargs=-1, required=True)
@command
async def revoke(session: Session, ids: tuple[str, ...]) -> None:
    """End tokens by their ids. Hosts that have joined stay."""
    failed = False
    for each in ids:
        token_id = each.partition(".")[0]
        try:
            await session.client.delete(register.SECRET, NAMESPACE, _PREFIX + token_id)
        except ApiError as error:
            if error.reason != "NotFound":
                raise
            click.echo(f"there is no token {token_id}: used, revoked or expired", err=True)
            failed = True
            continue
        click.echo(f"token {token_id} revoked")
    if failed:
        raise SystemExit(1)


async def _tokens(session: Session) -> list[Object]:
    selection = Selection(namespace=NAMESPACE, fields=f"type={_TYPE}")
    return (await session.client.list(register.SECRET, selection)).items


def _told(secret: Object) -> dict[str, str]:
    data = decoded(secret)
    return {
        "id": secret["metadata"]["name"].removeprefix(_PREFIX),
        "expires": data.get("expiration", ""),
        "host": data.get("stead-host", ""),
        "created": secret["metadata"].get("creationTimestamp", ""),
    }

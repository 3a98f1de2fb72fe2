"""`stead login`: proof of who you are, by password, by an OpenID Connect issuer or by a token, into a kubeconfig.

The device flow is RFC 8628: the issuer shows a page, we ask it until the person has confirmed. Nothing is written until
the API has accepted what was obtained. Where the issuer gives a refresh token, the kubeconfig names a credential
plug-in of ours that renews the ID token (`oidc_session`). The kubeconfig's other entries stay as they are.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec
import yaml

from stead.cli import oidc_session
from stead.cli.session import current_options, explained, kubeconfig_path
from stead.client.direct import DirectClient
from stead.client.kubeconfig import Endpoint, default_path, load
from stead.kube.errors import ApiError
from stead.pki import write_private

_REVIEW = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
_DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
#: least time between two questions of the device flow, seconds; the issuer may ask for more
MIN_INTERVAL = 0.2


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a login."""

    server: str
    ca: Path | None
    user: str
    read: bool
    token: str
    issuer: str
    client_id: str
    issuer_ca: Path | None
    scopes: str


@click.command()
@click.option("--server", default="", help="URL of the API; else that of the current kubeconfig.")
@click.option("--ca", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="PEM of its authority.")
@click.option("--user", default="", help="User with a password; it is asked for.")
@click.option("--password-stdin", "read", is_flag=True, help="Read the password from standard input.")
@click.option("--token", default="", help="A token that you have: of an issuer, or of a ServiceAccount.")
@click.option("--oidc-issuer", "issuer", default="", help="Log in at this OpenID Connect issuer (device flow).")
@click.option("--oidc-client-id", "client_id", default="", help="As which client.")
@click.option("--oidc-ca", "issuer_ca", type=click.Path(path_type=Path, exists=True), help="PEM of its authority.")
@click.option(
    "--oidc-scopes",
    "scopes",
    default="openid profile email groups offline_access",
    show_default=True,
    help="What to ask for.",
)
def login(**given: Any) -> None:
    """Log in and write the session into the kubeconfig (`--kubeconfig`, else kubectl's own)."""
    wanted, options = Wanted(**given), current_options()
    ways = sum(bool(way) for way in (wanted.user, wanted.token, wanted.issuer))
    if ways != 1 or bool(wanted.issuer) != bool(wanted.client_id):
        raise click.UsageError("one of --user, --token, or --oidc-issuer with --oidc-client-id")
    settings = options.settings()
    with explained(options, settings):
        if wanted.server:
            ca = wanted.ca.read_bytes() if wanted.ca else None
            endpoint = Endpoint(server=wanted.server.rstrip("/"), ca=ca)
        else:
            known = load(kubeconfig_path(options, settings), context=options.context)
            endpoint = Endpoint(server=known.server, ca=known.ca, server_name=known.server_name)
        path = options.kubeconfig or default_path()
        name = asyncio.run(_log_in(wanted, endpoint, path))
    click.echo(f"logged in at {endpoint.server} as {name}; kubeconfig: {path}")


async def _log_in(wanted: Wanted, endpoint: Endpoint, path: Path) -> str:
    """Obtain a token, try it, write it; returns who we are. Raises ApiError, click.ClickException."""
    session: oidc_session.Session | None = None
    if wanted.token:
        token = wanted.token
    elif wanted.user:
        token = await _by_password(wanted, endpoint)
    else:
        token, session = await _by_device(wanted)
    client = DirectClient(msgspec.structs.replace(endpoint, token=token))
    try:
        review = await client.request_json("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=_REVIEW)
    finally:
        await client.close()
    name = str(review["status"]["userInfo"]["username"])
    document = await asyncio.to_thread(_read, path)
    proof: dict[str, Any] = {"token": token}
    if session is not None:
        kept = await asyncio.to_thread(oidc_session.keep, session, endpoint.server, name)
        proof = {"exec": oidc_session.plugin(kept)}
    text = yaml.safe_dump(merged(document, endpoint, name, proof), sort_keys=False)
    await asyncio.to_thread(write_private, path.absolute(), text.encode())
    return name


async def _by_password(wanted: Wanted, endpoint: Endpoint) -> str:
    if wanted.read:
        password = sys.stdin.readline().rstrip("\n")
    else:
        password = click.prompt(f"Password of {wanted.user}", hide_input=True)
    client = DirectClient(endpoint)
    try:
        body = {"username": wanted.user, "password": password, "token": True}
        answer = await client.request_json("POST", "/auth/login", body=body)
    except ApiError as error:
        if error.reason == "Unauthorized":
            raise click.ClickException("wrong user or password") from error
        raise
    finally:
        await client.close()
    return str(answer["token"])


async def _by_device(wanted: Wanted) -> tuple[str, oidc_session.Session | None]:
    """An ID token by the device flow, and how to renew it if the issuer lets us. Raises click.ClickException."""
    async with oidc_session.discovered(wanted.issuer, wanted.issuer_ca) as (session, found):
        if "device_authorization_endpoint" not in found:
            raise click.ClickException(
                f"{wanted.issuer} offers no device flow: get a token elsewhere, give it by --token"
            )
        form = {"client_id": wanted.client_id, "scope": wanted.scopes}
        started = await oidc_session.post(session, found["device_authorization_endpoint"], form)
        if "device_code" not in started:
            raise click.ClickException(f"{wanted.issuer}: {started.get('error_description') or started.get('error')}")
        address = started.get("verification_uri_complete") or started["verification_uri"]
        click.echo(f"Open {address} and enter {started['user_code']}", err=True)
        interval = max(MIN_INTERVAL, float(started.get("interval", 5)))
        deadline = time.monotonic() + float(started.get("expires_in", 600))
        form = {"client_id": wanted.client_id, "grant_type": _DEVICE, "device_code": started["device_code"]}
        while time.monotonic() < deadline:
            await asyncio.sleep(interval)
            answer = await oidc_session.post(session, found["token_endpoint"], form)
            if "id_token" in answer:
                return str(answer["id_token"]), oidc_session.Session.of(
                    wanted.issuer, wanted.client_id, wanted.issuer_ca, answer
                )
            if answer.get("error") == "slow_down":
                interval += 5
            elif answer.get("error") != "authorization_pending":
                raise click.ClickException(f"{wanted.issuer}: {answer.get('error_description') or answer.get('error')}")
    raise click.ClickException("the code has run out before it was confirmed")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except yaml.YAMLError as error:
        raise click.ClickException(f"kubeconfig {path} is not YAML; nothing was changed") from error
    return found if isinstance(found, dict) else {}


def merged(document: dict[str, Any], endpoint: Endpoint, user: str, proof: dict[str, Any]) -> dict[str, Any]:
    """The kubeconfig with this cluster, user and context, the context current; entries of other names stay."""
    parts = urlsplit(endpoint.server)
    cluster = f"stead-{parts.hostname}-{parts.port or 443}"
    name = f"{user}@{cluster}"
    where: dict[str, Any] = {"server": endpoint.server}
    if endpoint.ca:
        where["certificate-authority-data"] = base64.b64encode(endpoint.ca).decode()
    if endpoint.server_name:
        where["tls-server-name"] = endpoint.server_name
    entries = {
        "clusters": {"name": cluster, "cluster": where},
        "users": {"name": name, "user": proof},
        "contexts": {"name": name, "context": {"cluster": cluster, "user": name}},
    }
    found = {"apiVersion": "v1", "kind": "Config", **document, "current-context": name}
    for section, entry in entries.items():
        kept = [other for other in found.get(section) or [] if other.get("name") != entry["name"]]
        found[section] = [*kept, entry]
    return found

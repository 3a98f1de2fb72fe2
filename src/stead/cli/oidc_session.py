"""A session with an OpenID Connect issuer: its refresh token, kept by the user, and ID tokens renewed by it.

Called by `login`, which begins one, and by `stead oidc-token`, which kubeconfigs name as their credential plug-in
(client.authentication.k8s.io/v1): it prints the ID token that is there, or a new one shortly before that ends. The
session lies in a private file of the user's (`$XDG_STATE_HOME/stead`), not in the kubeconfig, which people hand on.
Several processes may renew at once: a lock on the file lets one of them do it, since issuers let a refresh token be
used once. Sources: OpenID Connect Core 12, RFC 6749 section 6.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import fcntl
import hashlib
import os
import shutil
import ssl
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import click
import msgspec

from stead.kube.meta import format_time
from stead.pki import write_private

#: an ID token is renewed so long before its end, seconds; it is told to end then
RENEW_SECONDS = 60.0
#: how long the issuer may take to answer, seconds
ISSUER_SECONDS = 30.0


class Session(msgspec.Struct, kw_only=True):
    """What a session file holds. `ca` is PEM text, "" for the system's authorities."""

    issuer: str
    client_id: str
    ca: str
    id_token: str
    refresh_token: str

    @classmethod
    def of(cls, issuer: str, client_id: str, ca: Path | None, answer: dict[str, Any]) -> Session | None:
        """The session that a token endpoint's answer begins; None when it cannot be renewed."""
        if not answer.get("refresh_token"):
            return None
        return cls(
            issuer=issuer, client_id=client_id, ca=ca.read_text(encoding="utf-8") if ca else "",
            id_token=str(answer["id_token"]), refresh_token=str(answer["refresh_token"]),
        )  # fmt: skip


def ends(id_token: str) -> float:
    """When an ID token ends, seconds since 1970; it was verified by whom it is for. 0 when it says nothing."""
    with contextlib.suppress(ValueError, IndexError, msgspec.DecodeError, TypeError, AttributeError):
        claims = id_token.split(".")[1]
        return float(msgspec.json.decode(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4))).get("exp", 0))
    return 0.0


def keep(session: Session, server: str, user: str) -> Path:
    """Write a session into a private file of its own for this user of this API."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "stead"
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = base / f"oidc-{hashlib.sha256(f'{server} {user}'.encode()).hexdigest()[:16]}.json"
    write_private(path, msgspec.json.encode(session))
    return path


def plugin(path: Path) -> dict[str, Any]:
    """The credential plug-in of a kubeconfig that uses the session at `path`."""
    program = shutil.which("stead")
    command, words = (program, []) if program else (sys.executable, ["-m", "stead.cli.main"])
    return {
        "apiVersion": "client.authentication.k8s.io/v1", "command": command, "args": [*words, "oidc-token", str(path)],
        "interactiveMode": "Never", "provideClusterInfo": False,
        "installHint": "the program `stead` renews the token of this login; without it run `stead login` again",
    }  # fmt: skip


@click.command("oidc-token", hidden=True)
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
def oidc_token(path: Path) -> None:
    """Print the credential of a session, renewed if need be; kubeconfigs call this."""
    try:
        with _locked(path):
            session = msgspec.json.decode(path.read_bytes(), type=Session)
            if ends(session.id_token) - time.time() < RENEW_SECONDS:
                session = asyncio.run(_renewed(session))
                write_private(path, msgspec.json.encode(session))
    except FileNotFoundError as error:
        raise click.ClickException(f"the session {path} is not there: run `stead login` again") from error
    except (OSError, msgspec.DecodeError, aiohttp.ClientError, TimeoutError) as error:
        raise click.ClickException(f"cannot renew the session {path}: {error}") from error
    until = datetime.datetime.fromtimestamp(ends(session.id_token) - RENEW_SECONDS / 2, datetime.UTC)
    status = {"token": session.id_token, "expirationTimestamp": format_time(until)}
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    click.echo(msgspec.json.encode(credential).decode())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time renews a session. Raises FileNotFoundError when there is none."""
    path.stat()
    with open(f"{path}.lock", "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


async def _renewed(session: Session) -> Session:
    """The session with a new ID token; its refresh token may be a new one too. Raises click.ClickException."""
    form = {
        "grant_type": "refresh_token", "refresh_token": session.refresh_token, "client_id": session.client_id,
    }  # fmt: skip
    async with _discovered(session.issuer, session.ca) as (http, found):
        answer = await post(http, str(found["token_endpoint"]), form)
    if "id_token" not in answer:
        told = answer.get("error_description") or answer.get("error") or "gave no ID token"
        raise click.ClickException(f"{session.issuer}: {told}; run `stead login` again")
    refresh = str(answer.get("refresh_token") or session.refresh_token)
    return msgspec.structs.replace(session, id_token=str(answer["id_token"]), refresh_token=refresh)


@contextlib.asynccontextmanager
async def discovered(issuer: str, ca: Path | None) -> AsyncIterator[tuple[aiohttp.ClientSession, dict[str, Any]]]:
    """A connection to the issuer and its discovery document. Raises click.ClickException."""
    text = await asyncio.to_thread(ca.read_text) if ca else ""
    async with _discovered(issuer, text) as found:
        yield found


@contextlib.asynccontextmanager
async def _discovered(issuer: str, ca: str) -> AsyncIterator[tuple[aiohttp.ClientSession, dict[str, Any]]]:
    if not issuer.startswith("https://"):
        raise click.ClickException(f"{issuer} is not https")
    context = ssl.create_default_context(cadata=ca or None)
    timeout = aiohttp.ClientTimeout(total=ISSUER_SECONDS)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), timeout=timeout) as session:
        url = issuer.rstrip("/") + "/.well-known/openid-configuration"
        async with session.get(url) as response:
            if response.status != 200:
                raise click.ClickException(f"{url} answers {response.status}")
            yield session, await response.json(content_type=None)


async def post(session: aiohttp.ClientSession, url: str, form: dict[str, str]) -> dict[str, Any]:
    """What the issuer answers to a form, errors included."""
    async with session.post(url, data=form) as response:
        found: dict[str, Any] = await response.json(content_type=None)
        return found

"""How a host joins a Stead whose plane runs elsewhere, and keeps its certificate from running out.

Called by `stead join` and by the agent's process. What is trusted at first is one authority, by the hash of its key,
which comes with the token; the answers of a server that cannot show a certificate of it count for nothing. A host's
private key never leaves the host. The other end is `server.joins`.
"""

from __future__ import annotations

import asyncio
import datetime
import re
import socket
import ssl
import time
from urllib.parse import urlsplit

import aiohttp
import msgspec
import structlog

from stead import installation, pki
from stead.client.direct import DirectClient
from stead.client.kubeconfig import Endpoint
from stead.client.remote import CONNECT_SECONDS, network_error
from stead.config import Settings
from stead.kinds import register
from stead.kinds.joins import ABOUT_PATH, MAX_CLOCK_DIFFERENCE
from stead.kube.errors import ApiError

log = structlog.get_logger(__name__)

#: how often a host looks whether its certificate is due, seconds; sooner where certificates live for minutes
LOOK_SECONDS = 3600.0
#: most of what is read from a server that is not trusted yet, bytes
MAX_ABOUT = 1024 * 1024
_TOKEN = re.compile(r"([a-z0-9]{1,32}\.[a-z0-9]{16,64})(?:\.([0-9a-f]{64}))?\Z")
_HASH = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})\Z")


class NotJoined(Exception):
    """Why the host is not let in, in one sentence."""


class Ticket(msgspec.Struct, frozen=True):
    """A token of `stead token create`, and the hash of the authority's key that comes with it."""

    token: str
    ca_hash: str


class Asking(msgspec.Struct, frozen=True, kw_only=True):
    """What a host asks for. `addresses`: where its agent listens; none = the one that reaches the API."""

    url: str
    host: str
    addresses: tuple[str, ...] = ()


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a host was given: certificate, key and authorities in PEM."""

    certificate: bytes
    key: bytes
    authorities: bytes
    addresses: tuple[str, ...]


def ticket_from(text: str, ca_hash: str = "") -> Ticket:
    """A token as it was printed; `ca_hash` goes before the token's own. Raises NotJoined."""
    found = _TOKEN.match(text.strip())
    if found is None:
        raise NotJoined("that is no token of `stead token create`: ID.SECRET.HASH")
    wanted = found[2] or ""
    if ca_hash:
        given = _HASH.match(ca_hash)
        if given is None:
            raise NotJoined(f"--ca-hash {ca_hash}: sha256: and 64 hexadecimal digits")
        wanted = given[1].lower()
    if not wanted:
        raise NotJoined("the token carries no hash of the authority: give it by --ca-hash")
    return Ticket(found[1], wanted)


class _About(msgspec.Struct):
    authorities: str
    time: str


async def join(asking: Asking, ticket: Ticket) -> Identity:
    """Get a certificate for this host. Raises NotJoined, ApiError (what the API refuses), OSError."""
    url = asking.url.rstrip("/")
    told, _ = await _about(url, _unverified())
    try:
        trusted = pki.pinned(told.authorities.encode(), ticket.ca_hash)
    except ValueError:
        text = f"{url} is not the Stead that made the token: it shows no authority with the hash that the token names"
        raise NotJoined(text) from None
    told, off = await _about(url, ssl.create_default_context(cadata=trusted.decode()))
    if abs(off) > MAX_CLOCK_DIFFERENCE:
        raise NotJoined(
            f"this host's clock is {off:+.1f} s off the API's, {MAX_CLOCK_DIFFERENCE:.0f} s are allowed: "
            "set it (chrony, systemd-timesyncd) and try again; the token is still good"
        )
    addresses = asking.addresses or (await asyncio.to_thread(_address_towards, url),)
    wanted = msgspec.structs.replace(asking, url=url, addresses=addresses)
    return await _ask(Endpoint(server=url, ca=trusted, token=ticket.token), wanted)


async def _ask(endpoint: Endpoint, asking: Asking) -> Identity:
    request, key = pki.signing_request(f"system:node:{asking.host}")
    now = datetime.datetime.now(datetime.UTC).isoformat()
    body = {
        "apiVersion": register.JOIN.api_version,
        "kind": register.JOIN.kind,
        "metadata": {"name": asking.host},
        "spec": {"request": request.decode(), "time": now, "addresses": list(asking.addresses)},
    }
    client = DirectClient(endpoint)
    try:
        status = (await client.create(register.JOIN, body))["status"]
    finally:
        await client.close()
    return Identity(
        certificate=status["certificate"].encode(),
        key=key,
        authorities=status["authorities"].encode(),
        addresses=asking.addresses,
    )


async def _about(url: str, tls: ssl.SSLContext) -> tuple[_About, float]:
    """What a server says of itself, and by how many seconds our clock is ahead of it (half a round trip allowed)."""
    timeout = aiohttp.ClientTimeout(total=CONNECT_SECONDS)
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), timeout=timeout) as session:
            begun = time.time()
            async with session.get(url + ABOUT_PATH) as response:
                raw = await response.content.read(MAX_ABOUT)
                middle = (begun + time.time()) / 2
            about = msgspec.json.decode(raw, type=_About)
            return about, middle - datetime.datetime.fromisoformat(about.time).timestamp()
    except aiohttp.ClientError as error:
        raise network_error(error) from error
    except (msgspec.DecodeError, ValueError):
        raise NotJoined(f"{url} does not answer as a Stead does") from None


def _unverified() -> ssl.SSLContext:
    """For the one question whose answer is proven by the pinned hash afterwards."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _address_towards(url: str) -> str:
    """This host's address as the API's host sees it (blocking, a name may be looked up)."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=CONNECT_SECONDS) as found:
        return str(found.getsockname()[0])


async def renew(settings: Settings) -> None:
    """Get a new certificate by the present one, and the authorities to trust. Raises ApiError, OSError."""
    files = installation.Files.of(settings)
    endpoint = Endpoint(
        server=settings.url,
        ca=files.ca.read_bytes(),
        certificate=files.agent.certificate.read_bytes(),
        key=files.agent.key.read_bytes(),
    )
    asking = Asking(url=settings.url, host=settings.host, addresses=(settings.agent_address,))
    found = await _ask(endpoint, asking)
    await asyncio.to_thread(installation.keep_identity, settings, found.certificate, found.key, found.authorities)


async def keep_renewed(settings: Settings) -> None:
    """Renew the host's certificate whenever a third of its life is left, and learn of new authorities; for ever."""
    files = installation.Files.of(settings)
    pause = min(LOOK_SECONDS, settings.certificate_seconds / 12)
    while True:
        await asyncio.sleep(pause)
        try:
            if pki.is_due_by_age(files.agent.certificate) or await _is_new_authority(settings):
                await renew(settings)
                log.info("the host's certificate was renewed", host=settings.host)
        except (ApiError, NotJoined, OSError, TimeoutError) as error:
            log.warning("the host's certificate could not be renewed, trying again", error=str(error))


async def _is_new_authority(settings: Settings) -> bool:
    """Whether the API, which we trust by what we have, tells of other authorities."""
    kept = installation.Files.of(settings).ca
    told, _ = await _about(settings.url, ssl.create_default_context(cafile=str(kept)))
    return set(pki.fingerprints(told.authorities.encode())) != set(pki.fingerprints(kept.read_bytes()))

"""Users of an OpenID Connect issuer: its ID tokens become identities with a prefix.

Called by `authn` for bearer tokens that name the issuer. Discovery and keys are fetched over HTTPS from the issuer
alone, when the first such token comes, again each `REFRESH_SECONDS`, and at once for a key that is not known (at most
each `RETRY_SECONDS`, so that forged tokens cause no stream of requests). While the issuer cannot be reached, known keys
count for `STALE_SECONDS`. Nothing is fetched unless an issuer is configured. On the event loop; one fetch at a time.

Follows kube-apiserver's `--oidc-*` flags: user name prefix `ISSUER#` unless the claim is `email` or the prefix is set
(`-` for none); `email` counts only when verified; groups are a string or a list. Stricter in one point: a token that
yields a name or group of `system:` is refused, whatever the prefix.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import msgspec
import structlog

from stead.server.authn import AUTHENTICATED, User, unauthorized

log = structlog.get_logger(__name__)

ALGORITHMS = ("RS256", "ES256")
REFRESH_SECONDS = 3600.0
RETRY_SECONDS = 10.0
STALE_SECONDS = 86400.0
FETCH_SECONDS = 10.0
#: largest discovery document or key set that is read, bytes
MAX_DOCUMENT = 256 * 1024
#: tolerated difference of the issuer's clock, seconds
LEEWAY_SECONDS = 10


class OidcSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which issuer, and what its claims mean. `ca` is a PEM file, "" = the system's authorities."""

    issuer: str
    client_id: str
    username_claim: str = "sub"
    username_prefix: str = ""
    groups_claim: str = ""
    groups_prefix: str = ""
    ca: str = ""

    @property
    def prefix(self) -> str:
        """What goes before user names."""
        if self.username_prefix == "-":
            return ""
        if self.username_prefix or self.username_claim == "email":
            return self.username_prefix
        return f"{self.issuer}#"


def user_from_claims(claims: dict[str, Any], settings: OidcSettings) -> User:
    """The identity that verified claims describe. Raises 401."""
    name = claims.get(settings.username_claim)
    if not isinstance(name, str) or not name:
        raise unauthorized()
    if settings.username_claim == "email" and claims.get("email_verified", True) is not True:
        raise unauthorized()
    given = claims.get(settings.groups_claim, []) if settings.groups_claim else []
    groups = [given] if isinstance(given, str) else given
    if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
        raise unauthorized()
    user, named = settings.prefix + name, tuple(settings.groups_prefix + group for group in groups)
    if any(word.startswith("system:") for word in (user, *named)):
        log.warning("a token of the OIDC issuer claims an identity of the system's own", user=user, groups=named)
        raise unauthorized()
    extra = {"authentication.kubernetes.io/credential-id": [f"JTI={claims['jti']}"]} if "jti" in claims else {}
    return User(user, groups=(*named, AUTHENTICATED), extra=extra)


class Oidc:
    """See the module's prose."""

    def __init__(self, settings: OidcSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = self._tried = float("-inf")
        self._fetching = asyncio.Lock()

    def is_meant(self, token: str) -> bool:
        """Whether a token names this issuer; nothing of it is believed yet."""
        try:
            claims = jwt.decode(token, options={"verify_signature": False})
        except jwt.PyJWTError:
            return False
        return claims.get("iss") == self._settings.issuer

    async def user(self, token: str, audiences: tuple[str, ...] = ()) -> User:
        """The identity of a token. `audiences` other than the client's id are not ours to grant. Raises 401."""
        if audiences and self._settings.client_id not in audiences:
            raise unauthorized()
        try:
            header = jwt.get_unverified_header(token)
            key = await self._key(str(header.get("kid", "")))
            if key is None or header.get("alg") != key.algorithm_name:
                raise unauthorized()
            claims = jwt.decode(
                token, key, algorithms=[key.algorithm_name], audience=self._settings.client_id,
                issuer=self._settings.issuer, leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )  # fmt: skip
        except (jwt.PyJWTError, ValueError, TypeError):
            raise unauthorized() from None
        return user_from_claims(claims, self._settings)

    async def _key(self, key_id: str) -> jwt.PyJWK | None:
        now = self._clock()
        if now - self._fetched > REFRESH_SECONDS or self._found(key_id) is None:
            async with self._fetching:
                now = self._clock()
                if now - self._tried > RETRY_SECONDS:
                    self._tried = now
                    await self._refresh()
        return self._found(key_id) if self._clock() - self._fetched < STALE_SECONDS else None

    def _found(self, key_id: str) -> jwt.PyJWK | None:
        if not key_id and len(self._keys) == 1:  # an issuer with one key may leave its name out
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                keys = await self._fetch()
        except (OSError, aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
            log.warning("the OIDC issuer's keys cannot be had", issuer=self._settings.issuer, error=repr(error))
            return
        self._keys, self._fetched = keys, self._clock()

    async def _fetch(self) -> dict[str, jwt.PyJWK]:
        issuer = self._settings.issuer
        context = await asyncio.to_thread(_tls, self._settings.ca)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), trust_env=False) as session:
            found = await _document(session, issuer.rstrip("/") + "/.well-known/openid-configuration")
            if found["issuer"] != issuer:
                raise ValueError(f"discovery names the issuer {found['issuer']!r}")
            return keys_from((await _document(session, str(found["jwks_uri"])))["keys"])


def keys_from(entries: list[dict[str, Any]]) -> dict[str, jwt.PyJWK]:
    """Signature keys by id; what is of another kind or broken is left out."""
    keys: dict[str, jwt.PyJWK] = {}
    for entry in entries:
        if entry.get("use", "sig") != "sig":
            continue
        with contextlib.suppress(jwt.PyJWTError):
            key = jwt.PyJWK(entry)
            if key.algorithm_name in ALGORITHMS:
                keys[str(entry.get("kid", ""))] = key
    return keys


def _tls(ca: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(Path(ca)) if ca else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def _document(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """A JSON object by HTTPS, no redirect followed. Raises ValueError."""
    if not url.startswith("https://"):
        raise ValueError(f"{url} is not https")
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            raise ValueError(f"{url} answers {response.status}")
        raw = bytearray()
        async for chunk in response.content.iter_chunked(65536):
            raw += chunk
            if len(raw) > MAX_DOCUMENT:
                raise ValueError(f"{url} is larger than {MAX_DOCUMENT} bytes")
    found: Any = msgspec.json.decode(bytes(raw))
    if not isinstance(found, dict):
        raise ValueError(f"{url} is not a JSON object")
    return found

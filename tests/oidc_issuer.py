"""A real OpenID Connect issuer on loopback for tests: HTTPS with a CA of its own, discovery, keys that rotate, tokens.

`async with running_issuer() as issuer:` gives `issuer.url`, `issuer.ca` (PEM file), `issuer.token(**claims)`,
`issuer.rotate()`. `issuer.requests` counts what was fetched; `issuer.is_down` makes it answer 503. The device flow
(RFC 8628) answers `authorization_pending` once, then a token for `issuer.person`.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from stead import pki

CLIENT_ID = "stead-test"


class Issuer:
    def __init__(self, ca: Path) -> None:
        self.ca = ca
        self.url = ""
        self.requests = 0
        self.is_down = False
        self.person: dict[str, Any] = {"sub": "alice"}
        self._polls = 0
        #: whether logins get a refresh token; the one that is good now; how often one was used
        self.refreshable, self.refresh_token, self.refreshes = False, "", 0
        self.keys: dict[str, Any] = {}
        self.add("rsa-1", rsa.generate_private_key(65537, 2048))
        self.add("ec-1", ec.generate_private_key(ec.SECP256R1()))

    def add(self, name: str, key: Any) -> None:
        self.keys[name] = key

    def rotate(self) -> None:
        """New keys, the old ones forgotten."""
        self.keys = {"ec-2": ec.generate_private_key(ec.SECP256R1())}

    def token(self, key: str = "", *, signer: Any = None, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """An ID token; claims given as None are left out."""
        name = key or next(reversed(self.keys))
        private = signer or self.keys[name]
        now = int(time.time())
        told = {"iss": self.url, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "sub": "alice", **claims}
        told = {claim: value for claim, value in told.items() if value is not None}
        algorithm = "RS256" if isinstance(private, rsa.RSAPrivateKey) else "ES256"
        return jwt.encode(told, private, algorithm, headers={"kid": name, **(header or {})})

    async def discovery(self, request: web.Request) -> web.Response:
        self._count()
        return web.json_response({
            "issuer": self.url, "jwks_uri": f"{self.url}/keys", "token_endpoint": f"{self.url}/token",
            "device_authorization_endpoint": f"{self.url}/device",
        })  # fmt: skip

    async def jwks(self, request: web.Request) -> web.Response:
        self._count()
        listed: list[dict[str, Any]] = [{"kty": "oct", "k": "AAAA", "kid": "symmetric", "use": "sig"}]
        for name, key in self.keys.items():
            kind = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
            listed.append({**kind.to_jwk(key.public_key(), as_dict=True), "kid": name, "use": "sig"})
        return web.json_response({"keys": listed})

    async def device(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["client_id"] == CLIENT_ID
        return web.json_response({
            "device_code": "device-code", "user_code": "WDJB-MJHT", "verification_uri": f"{self.url}/activate",
            "expires_in": 60, "interval": 0,
        })  # fmt: skip

    async def exchange(self, request: web.Request) -> web.Response:
        form = await request.post()
        if form["grant_type"] == "refresh_token":
            return self._refresh(str(form["refresh_token"]))
        assert form["device_code"] == "device-code"
        self._polls += 1
        if self._polls == 1:
            return web.json_response({"error": "authorization_pending"}, status=400)
        answer = {"id_token": self.token(**self.person), "token_type": "Bearer"}
        if self.refreshable:
            answer["refresh_token"] = self._next_refresh()
        return web.json_response(answer)

    def _refresh(self, given: str) -> web.Response:
        """Each refresh token is good once, and brings the next."""
        if given != self.refresh_token:
            return web.json_response({"error": "invalid_grant", "error_description": "token was used"}, status=400)
        self.refreshes += 1
        answer = {"id_token": self.token(**{**self.person, "exp": int(time.time()) + 300})}
        return web.json_response({**answer, "refresh_token": self._next_refresh()})

    def _next_refresh(self) -> str:
        self.refresh_token = f"refresh-{secrets.token_hex(8)}"
        return self.refresh_token

    def _count(self) -> None:
        self.requests += 1
        if self.is_down:
            raise web.HTTPServiceUnavailable


@contextlib.asynccontextmanager
async def running_issuer() -> AsyncIterator[Issuer]:
    with tempfile.TemporaryDirectory(prefix="stead-issuer-") as temporary:
        directory = Path(temporary)
        authority = pki.ensure_authority(directory / "pki", "somebody-else")
        pair = pki.Pair(directory / "issuer.crt", directory / "issuer.key")
        pki.ensure_certificate(authority, pair, pki.Identity("issuer", names=("127.0.0.1",)))
        issuer = Issuer(authority.certificate)
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", issuer.discovery)
        app.router.add_get("/keys", issuer.jwks)
        app.router.add_post("/device", issuer.device)
        app.router.add_post("/token", issuer.exchange)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(
            runner, "127.0.0.1", 0, ssl_context=pki.server_context(pair, authority.certificate, require_client=False)
        )
        await site.start()
        issuer.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield issuer
        finally:
            await runner.cleanup()

"""Users of an OpenID Connect issuer, by a real issuer with a CA of its own and a real API server."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec

from api_server import RunningServer, running_server
from oidc_issuer import CLIENT_ID, Issuer, running_issuer
from stead.server import oidc
from stead.server.oidc import OidcSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")
REVIEW = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def issuer() -> AsyncIterator[Issuer]:
    async with running_issuer() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(issuer: Issuer) -> AsyncIterator[RunningServer]:
    settings = OidcSettings(
        issuer=issuer.url, client_id=CLIENT_ID, username_claim="email", username_prefix="corp:",
        groups_claim="groups", groups_prefix="corp:", ca=str(issuer.ca),
    )  # fmt: skip
    async with running_server(oidc=settings) as running:
        yield running


async def whoami(server: RunningServer, token: str) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(server.url + REVIEW, data=body, headers=headers, ssl=server.anonymous()) as response,
    ):
        found = await response.json()
        return response.status, found.get("status", {}).get("userInfo", found) if response.status == 201 else found


@pytest.mark.parametrize("key", ["rsa-1", "ec-1"])
async def test_a_token_of_the_issuer_is_a_user_with_prefixed_name_and_groups(
    server: RunningServer, issuer: Issuer, key: str
) -> None:
    token = issuer.token(key, email="alice@example.com", email_verified=True, groups=["admins", "dev"])
    code, user = await whoami(server, token)
    assert code == 201
    assert user["username"] == "corp:alice@example.com"
    assert user["groups"] == ["corp:admins", "corp:dev", "system:authenticated"]


async def test_what_is_not_quite_right_is_refused(server: RunningServer, issuer: Issuer) -> None:
    now = int(datetime.datetime.now(datetime.UTC).timestamp())
    good = {"email": "alice@example.com", "groups": "admins"}
    refused = [
        issuer.token(**good, aud="another-client"),
        issuer.token(**good, exp=now - 60),
        issuer.token(**good, exp=None),
        issuer.token(**good, nbf=now + 600),
        issuer.token(**{**good, "email_verified": False}),
        issuer.token(**{**good, "email": None}),
        issuer.token(**{**good, "groups": [1]}),
        issuer.token(**good, signer=ec.generate_private_key(ec.SECP256R1())),
        issuer.token(**good, header={"kid": "nobody"}),
        issuer.token(**good, header={"kid": "symmetric"}),
        issuer.token(**good)[:-4],
    ]
    for token in refused:
        code, status = await whoami(server, token)
        assert (code, status["reason"]) == (401, "Unauthorized")
    assert (await whoami(server, issuer.token(**good)))[0] == 201, "the control"


async def test_a_token_cannot_claim_an_identity_of_the_systems_own(issuer: Issuer) -> None:
    settings = OidcSettings(
        issuer=issuer.url, client_id=CLIENT_ID, username_prefix="-", groups_claim="groups", ca=str(issuer.ca)
    )
    async with running_server(oidc=settings) as server:
        assert (await whoami(server, issuer.token(sub="system:admin")))[0] == 401
        assert (await whoami(server, issuer.token(groups=["system:masters"])))[0] == 401
        assert (await whoami(server, issuer.token(groups=["masters"])))[0] == 201


async def test_without_an_issuer_nothing_is_fetched_and_its_tokens_are_refused(issuer: Issuer) -> None:
    async with running_server() as server:
        before = issuer.requests
        assert (await whoami(server, issuer.token()))[0] == 401
        assert issuer.requests == before


async def test_keys_are_kept_rotate_and_outlast_an_outage(issuer: Issuer) -> None:
    now = [0.0]
    verifier = oidc.Oidc(OidcSettings(issuer=issuer.url, client_id=CLIENT_ID, ca=str(issuer.ca)), clock=lambda: now[0])
    old = issuer.token()
    assert (await verifier.user(old)).name == f"{issuer.url}#alice"
    fetched = issuer.requests
    await verifier.user(old)
    assert issuer.requests == fetched, "known keys are not fetched again"
    for _ in range(20):
        with pytest.raises(oidc.unauthorized().__class__):
            await verifier.user(issuer.token(header={"kid": "forged"}))
    assert issuer.requests == fetched, "forged tokens cause no stream of requests"
    issuer.rotate()
    now[0] += oidc.RETRY_SECONDS + 1
    new = issuer.token()
    assert (await verifier.user(new)).name == f"{issuer.url}#alice"
    with pytest.raises(oidc.unauthorized().__class__):
        await verifier.user(old)
    issuer.is_down = True
    now[0] += oidc.REFRESH_SECONDS + 1
    await verifier.user(new)
    now[0] += oidc.STALE_SECONDS
    with pytest.raises(oidc.unauthorized().__class__):
        await verifier.user(new)
    issuer.is_down = False
    now[0] += oidc.RETRY_SECONDS + 1
    await verifier.user(issuer.token(exp=int(time.time()) + 60))

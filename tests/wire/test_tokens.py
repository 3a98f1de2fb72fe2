"""At least 500 forged, stale, truncated and foreign tokens are shown to a real server: none is accepted."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from api_server import RunningServer, running_server
from oidc_issuer import CLIENT_ID, Issuer, running_issuer
from stead.kinds import register
from stead.server.authn import ISSUER, TokenClaims
from stead.server.oidc import OidcSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")
WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
LEAST = 500


class World:
    def __init__(self, server: RunningServer, issuer: Issuer) -> None:
        self.server, self.issuer = server, issuer

    async def show(self, token: str, path: str = WHOAMI) -> int:
        return (await self.review(token, path))[0]

    async def review(self, token: str, path: str = WHOAMI, body: Any = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        data = json.dumps(body or {})
        async with self.session.post(self.server.url + path, data=data, headers=headers) as response:
            return response.status, await response.json(content_type=None)

    async def account(self, name: str) -> dict[str, Any]:
        return await self.server.client.create(
            register.SERVICE_ACCOUNT, {"metadata": {"name": name, "namespace": "default"}}
        )

    async def token(self, name: str, **spec: Any) -> str:
        path = f"/api/v1/namespaces/default/serviceaccounts/{name}/token"
        async with self.session.post(
            self.server.url + path, data=json.dumps({"spec": spec}), ssl=self.server.ssl,
            headers={"Content-Type": "application/json"},
        ) as response:  # fmt: skip
            found = await response.json()
            assert response.status == 201, found
            return str(found["status"]["token"])

    async def bootstrap_token(self, name: str, secret: str, **data: str) -> str:
        told = {"token-secret-sha256": hashlib.sha256(secret.encode()).hexdigest(),
                "usage-bootstrap-authentication": "true", **data}  # fmt: skip
        await self.server.client.create(register.SECRET, {
            "metadata": {"name": f"bootstrap-token-{name}", "namespace": "kube-system"},
            "type": "bootstrap.kubernetes.io/token", "stringData": told,
        })  # fmt: skip
        return f"{name}.{secret}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with running_issuer() as issuer:
        oidc = OidcSettings(issuer=issuer.url, client_id=CLIENT_ID, ca=str(issuer.ca))
        async with running_server(oidc=oidc) as server:
            found = World(server, issuer)
            connector = aiohttp.TCPConnector(ssl=server.anonymous(), limit=4)
            async with aiohttp.ClientSession(connector=connector) as found.session:
                yield found


def pieces(part: Any) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def truncated(token: str) -> Iterator[str]:
    """Cut at many places, and with one character changed at many places."""
    for at in range(1, len(token), max(1, len(token) // 120)):
        yield token[:at]
        yield token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
    for at in (1, 2, 3, 8, 20):
        yield token[at:]


def forged(world: World, good: str) -> Iterator[str]:
    """Other keys and algorithms, claims changed under the old signature, keys that the token brings along."""
    header, claims, signature = good.split(".")
    told = jwt.decode(good, options={"verify_signature": False})
    public = world.server.api.issuer._public
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for name in ("none", "None", "NONE", "nOnE", "", None, 1, "HS256", "ES384", "RS256", "EdDSA", "dir"):
        for end in ("", signature, "AAAA"):
            yield f"{pieces({'alg': name, 'typ': 'JWT'})}.{claims}.{end}"
    for key in (pem, der, b"", world.server.api.issuer.key_id.encode()):
        for name, digest in (("HS256", "sha256"), ("HS384", "sha384"), ("HS512", "sha512")):
            start = f"{pieces({'alg': name, 'typ': 'JWT'})}.{claims}"
            yield f"{start}.{pieces(hmac.new(key, start.encode(), digest).digest())}"
    foreign: list[Any] = [ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)]
    for key in foreign:
        algorithm = "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "RS256"
        kind = jwt.algorithms.ECAlgorithm if algorithm == "ES256" else jwt.algorithms.RSAAlgorithm
        for extra in ({}, {"kid": world.server.api.issuer.key_id}, {"jwk": kind.to_jwk(key.public_key(), as_dict=True)},
                      {"jku": world.issuer.url + "/keys"}, {"x5u": world.issuer.url}, {"kid": "../../etc/passwd"},
                      {"crit": ["exp"]}, {"kid": "' OR 1=1"}):  # fmt: skip
            yield jwt.encode(told, key, algorithm, headers=extra)
    for change in ({"sub": "system:serviceaccount:kube-system:default"}, {"exp": told["exp"] + 99999}, {"aud": ["x"]},
                   {"kubernetes.io": {}}, {"iss": "x"}, {"sub": "system:admin"}):  # fmt: skip
        yield f"{header}.{pieces({**told, **change})}.{signature}"
    yield from (f"{header}.{claims}.{signature}.", f".{claims}.{signature}", f"{header}..{signature}", f"{good}.{good}",
                f"{header}.{claims}.{pieces(bytes(64))}", f"{header}.{claims}.{pieces(b'1' * 64)}")  # fmt: skip


def stale(world: World, account: dict[str, Any]) -> Iterator[str]:
    """Signed by our own key, and yet: too old, too young, for others, for nobody, by another issuer, for uploads."""
    issuer = world.server.api.issuer
    metadata = account["metadata"]
    now = int(time.time())
    claims = TokenClaims(
        namespace="default", name=metadata["name"], uid=metadata["uid"], audiences=(ISSUER,), seconds=600
    )
    told = jwt.decode(issuer.issue(claims)[0], options={"verify_signature": False})
    inner = told["kubernetes.io"]
    for seconds in range(1, 100):
        yield issuer._sign({**told, "exp": now - seconds, "iat": now - 700, "nbf": now - 700})
    for seconds in range(60, 100):
        yield issuer._sign({**told, "nbf": now + seconds})
    for audience in ("vault", "", "https://kubernetes.default.svc", ISSUER + "/", ISSUER.upper(), []):
        yield issuer._sign({**told, "aud": audience})
    for missing in ("exp", "sub", "aud", "iss", "kubernetes.io"):
        yield issuer._sign({name: value for name, value in told.items() if name != missing})
    for change in (
        {"iss": "kubernetes/serviceaccount"}, {"iss": world.issuer.url}, {"sub": "system:serviceaccount:default:other"},
        {"kubernetes.io": "x"}, {"kubernetes.io": {**inner, "namespace": "kube-system"}}, {"exp": "soon"},
        {"kubernetes.io": {**inner, "serviceaccount": {"name": metadata["name"], "uid": "another"}}},
        {"kubernetes.io": {**inner, "serviceaccount": {"name": "absent", "uid": metadata["uid"]}}},
        {"kubernetes.io": {**inner, "secret": {"name": "absent", "uid": "x"}}},
        {"kubernetes.io": {**inner, "node": {"name": "absent", "uid": "x"}}},
    ):  # fmt: skip
        yield issuer._sign({**told, **change})
    yield issuer.issue_upload("default", "claim")


def foreign(world: World) -> Iterator[str]:
    """Of the OIDC issuer, but for others or signed by others; sessions and words that are nothing."""
    issuer = world.issuer
    now = int(time.time())
    for seconds in range(15, 60):
        yield issuer.token(exp=now - seconds)
    for audience in ("other", "", [], ["a", "b"], ISSUER, CLIENT_ID.upper()):
        yield issuer.token(aud=audience)
    for key in ("rsa-1", "ec-1"):
        yield issuer.token(key, signer=ec.generate_private_key(ec.SECP256R1()))
        yield from list(truncated(issuer.token(key)))[:80]
    yield issuer.token(iss=issuer.url + "/")
    yield issuer.token(iss=ISSUER)
    yield issuer.token(sub="")
    yield issuer.token(sub=None)
    for number in range(20):
        yield f"stead-session-{hashlib.sha256(bytes([number])).hexdigest()}"
    yield from ("stead-session-", "a.b", ".", "..", "...", "x", "Bearer", "null", "undefined", "a" * 8000, "é.è",
                "../bootstrap.x", "%00.%00", "abcdef.0123456789abcdef")  # fmt: skip


async def test_of_many_wrong_tokens_none_is_accepted(world: World) -> None:
    account = await world.account("robot")
    good = await world.token("robot")
    assert await world.show(good) == 201, "the control: the right one is"
    assert await world.show(world.issuer.token()) == 201
    tokens = [*truncated(good), *forged(world, good), *stale(world, account), *foreign(world)]
    wrong = [token for token in dict.fromkeys(tokens) if token.isascii() and token.isprintable() and token != good]
    assert len(wrong) >= LEAST
    codes = await asyncio.gather(*(world.show(token) for token in wrong))
    assert [(code, token) for code, token in zip(codes, wrong, strict=True) if code != 401] == []
    assert await world.show(good) == 201, "and the right one still is"


async def test_a_token_dies_with_its_account_and_with_what_it_is_bound_to(world: World) -> None:
    client = world.server.client
    await world.account("mortal")
    secret = await client.create(register.SECRET, {"metadata": {"name": "anchor", "namespace": "default"}})
    plain = await world.token("mortal")
    ref = {"kind": "Secret", "apiVersion": "v1", "name": "anchor", "uid": secret["metadata"]["uid"]}
    bound = await world.token("mortal", boundObjectRef=ref)
    assert (await world.show(plain), await world.show(bound)) == (201, 201)
    await client.delete(register.SECRET, "default", "anchor")
    assert (await world.show(plain), await world.show(bound)) == (201, 401)
    await client.create(register.SECRET, {"metadata": {"name": "anchor", "namespace": "default"}})
    assert await world.show(bound) == 401, "another object of that name is another object"
    await client.delete(register.SERVICE_ACCOUNT, "default", "mortal")
    assert await world.show(plain) == 401
    await world.account("mortal")
    assert await world.show(plain) == 401


async def test_a_token_for_others_is_reviewed_for_them_alone(world: World) -> None:
    await world.account("vaulted")
    token = await world.token("vaulted", audiences=["vault", "consul"])
    assert await world.show(token) == 401, "it is not for us"
    admin = aiohttp.TCPConnector(ssl=world.server.ssl)
    async with aiohttp.ClientSession(connector=admin) as session:

        async def review(*audiences: str) -> dict[str, Any]:
            body = {"spec": {"token": token, **({"audiences": audiences} if audiences else {})}}
            path = "/apis/authentication.k8s.io/v1/tokenreviews"
            async with session.post(world.server.url + path, json=body) as response:
                found: dict[str, Any] = (await response.json())["status"]
                return found

        assert (await review("vault", "other"))["audiences"] == ["vault"]
        assert (await review("other"))["authenticated"] is False
        assert (await review())["authenticated"] is False


async def test_a_bootstrap_token_is_good_for_one_request(world: World) -> None:
    token = await world.bootstrap_token("abcdef", "0123456789abcdef", **{"auth-extra-groups": "system:bootstrappers:x"})
    nowhere = "/api/v1/namespaces/default/configmaps"
    assert await world.show(token, nowhere) == 403, "a request that is refused leaves it"
    codes = await asyncio.gather(*(world.show(token) for _ in range(10)))
    assert sorted(codes) == [201] + [401] * 9
    assert await world.show(token) == 401


@pytest.mark.parametrize(
    "data",
    [
        {"expiration": "2020-01-01T00:00:00Z"},
        {"expiration": "whenever"},
        {"usage-bootstrap-authentication": "false"},
        {"auth-extra-groups": "system:masters"},
        {"auth-extra-groups": "system:bootstrappers:a,system:nodes"},
        {"token-secret-sha256": ""},
    ],
)
async def test_a_bootstrap_token_that_is_not_in_order_is_refused(world: World, data: dict[str, str]) -> None:
    name = f"t{hashlib.sha256(str(data).encode()).hexdigest()[:5]}"
    assert await world.show(await world.bootstrap_token(name, "0123456789abcdef", **data)) == 401

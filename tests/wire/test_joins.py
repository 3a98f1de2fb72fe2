"""Hosts join a real server: once a token, in the name that is theirs, trusting the pinned authority and no other."""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from api_server import RunningServer, running_server
from stead import installation, pki
from stead.client import joining
from stead.client.contract import Selection
from stead.client.direct import DirectClient
from stead.client.joining import Asking, NotJoined, Ticket
from stead.client.kubeconfig import Endpoint
from stead.config import Settings
from stead.kinds import joins, register
from stead.kinds.joins import ABOUT_PATH
from stead.kube.errors import ApiError

pytestmark = pytest.mark.asyncio(loop_scope="module")
JOINS = "/apis/stead.io/v1alpha1/joins"
SECRET = "0123456789abcdef0123456789abcdef"


class World:
    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.made = 0
        self.pin = pki.fingerprints(server.authority.certificate.read_bytes())[0]

    async def token(self, **data: str) -> str:
        """A fresh join token, without the hash."""
        self.made += 1
        told = {
            "token-secret-sha256": hashlib.sha256(SECRET.encode()).hexdigest(),
            "usage-bootstrap-authentication": "true",
            "auth-extra-groups": joins.GROUP,
            **data,
        }
        await self.server.client.create(register.SECRET, {
            "metadata": {"name": f"bootstrap-token-t{self.made}", "namespace": "kube-system"},
            "type": "bootstrap.kubernetes.io/token", "stringData": told,
        })  # fmt: skip
        return f"t{self.made}.{SECRET}"

    async def join(self, host: str, token: str, pin: str = "") -> joining.Identity:
        return await joining.join(Asking(url=self.server.url, host=host), Ticket(token, pin or self.pin))

    def client(self, found: joining.Identity) -> DirectClient:
        pair = {"certificate": found.certificate, "key": found.key}
        return DirectClient(Endpoint(server=self.server.url, ca=found.authorities, **pair))  # type: ignore[arg-type]

    async def ask(self, body: Any, token: str) -> tuple[int, str]:
        """A raw request for a certificate; status and message."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connector = aiohttp.TCPConnector(ssl=self.server.anonymous())
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post(self.server.url + JOINS, data=json.dumps(body), headers=headers) as answer,
        ):
            return answer.status, str((await answer.json(content_type=None)).get("message"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with running_server() as server:
        yield World(server)


def request(host: str, **change: Any) -> dict[str, Any]:
    pem, _ = pki.signing_request(f"system:node:{host}"[:64])
    spec = {"request": pem.decode(), "time": datetime.datetime.now(datetime.UTC).isoformat(), **change}
    return {"apiVersion": "stead.io/v1alpha1", "kind": "Join", "metadata": {"name": host}, "spec": spec}


async def test_a_host_joins_once_with_a_token_and_is_itself_and_nobody_else(world: World) -> None:
    token = await world.token()
    found = await world.join("n1", token)
    client = world.client(found)
    try:
        review = await client.request_json("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body={})
        assert review["status"]["userInfo"]["username"] == "system:node:n1"
        lease = {"metadata": {"name": "n1", "namespace": "kube-node-lease"}, "spec": {"holderIdentity": "n1"}}
        assert (await client.create(register.LEASE, lease))["metadata"]["name"] == "n1"
        with pytest.raises(ApiError, match="forbidden"):
            await client.list(register.SECRET, Selection())
    finally:
        await client.close()
    certificate = x509.load_pem_x509_certificate(found.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["n1"]
    assert [str(found) for found in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    with pytest.raises(ApiError, match="Unauthorized"):
        await world.join("n2", token)


async def test_a_removed_host_is_refused_at_once_and_may_join_again_as_a_new_one(world: World) -> None:
    found = await world.join("gone", await world.token())
    client = world.client(found)
    await client.get(register.NODE, None, "gone")
    await world.server.client.delete(register.NODE, None, "gone")
    with pytest.raises(ApiError, match="Unauthorized"):
        await client.get(register.NODE, None, "gone")
    again = await world.join("gone", await world.token())
    with pytest.raises(ApiError, match="Unauthorized"):
        await client.get(register.NODE, None, "gone")  # the certificate of before revives with nothing
    await client.close()
    client = world.client(again)
    await client.get(register.NODE, None, "gone")
    await client.close()


async def test_a_name_that_is_taken_needs_a_token_that_names_it(world: World) -> None:
    await world.join("taken", await world.token())
    with pytest.raises(ApiError, match="stead token create --host taken"):
        await world.join("taken", await world.token())
    with pytest.raises(ApiError, match="the token is for host other only"):
        await world.join("taken", await world.token(**{"stead-host": "other"}))
    before = (await world.server.client.get(register.NODE, None, "taken"))["metadata"]["uid"]
    await world.join("taken", await world.token(**{"stead-host": "taken"}))
    assert (await world.server.client.get(register.NODE, None, "taken"))["metadata"]["uid"] == before


async def test_a_server_without_the_pinned_authority_is_told_nothing(world: World) -> None:
    token = await world.token()
    async with running_server() as impostor:
        asking = Asking(url=impostor.url, host="x")
        with pytest.raises(NotJoined, match="no authority with the hash"):
            await joining.join(asking, Ticket(token, world.pin))
        # It may show the right authority, which is public: it cannot show a certificate of it.
        impostor.api.app._server.joins._signing = world.server.api.app._server.joins._signing  # type: ignore[union-attr]
        with pytest.raises(OSError, match=r"(?i)certificate"):
            await joining.join(asking, Ticket(token, world.pin))
    await world.join("pinned", token)  # and the token is still good


async def test_a_clock_that_is_off_is_refused_by_both_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    token = await world.token()
    for off in (-6.5, 6.5):
        with monkeypatch.context() as changed:
            changed.setattr(joining, "time", SimpleNamespace(time=lambda off=off: time.time() + off))
            with pytest.raises(NotJoined, match=r"clock is [-+]\d+\.\d s off"):
                await world.join("late", token)
    late = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=7)
    status, message = await world.ask(request("late", time=late.isoformat()), await world.token())
    assert status == 422
    assert "spec.time" in message
    assert "s off, 5 s are allowed" in message
    await world.join("late", token)


def _csr(key: Any, name: str) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(Encoding.PEM).decode()


def _broken_signature() -> str:
    der = bytearray(x509.load_pem_x509_csr(pki.signing_request("system:node:h")[0]).public_bytes(Encoding.DER))
    der[-5] ^= 1
    try:
        return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()
    except ValueError:
        return "x"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"request": "nothing"}, "spec.request"),
        ({"request": 7}, "spec.request"),
        ({"request": None}, "spec.request"),
        ({"request": "x" * 9000}, "spec.request"),
        ({"request": _csr(rsa.generate_private_key(65537, 2048), "system:node:h")}, "spec.request"),
        ({"request": _csr(ec.generate_private_key(ec.SECP384R1()), "system:node:h")}, "spec.request"),
        ({"request": _csr(ec.generate_private_key(ec.SECP256R1()), "system:node:other")}, "spec.request"),
        ({"request": _csr(ec.generate_private_key(ec.SECP256R1()), "stead-admin")}, "spec.request"),
        ({"request": _broken_signature()}, "spec.request"),
        ({"time": "noon"}, "spec.time"),
        ({"time": "2026-01-01T00:00:00"}, "spec.time"),
        ({"addresses": ["example.org"]}, "spec.addresses[0]"),
        ({"addresses": ["10.0.0.1", "192.0.2.1"]}, "spec.addresses[1]"),
        ({"addresses": ["10.0.0.1"] * 9}, "spec.addresses"),
        ({"addresses": {"a": 1}}, "spec.addresses"),
    ],
)
async def test_what_is_not_in_order_is_refused_by_field(world: World, change: dict[str, Any], field: str) -> None:
    status, message = await world.ask(request("h", **change), await world.token())
    assert status == 422, message
    assert field in message


@pytest.mark.parametrize("name", ["", "UP", "a_b", "..", "-a", "x" * 53, "stead", "a/b", "a b"])
async def test_names_that_no_host_may_bear(world: World, name: str) -> None:
    status, message = await world.ask(request(name), await world.token())
    assert status == 422
    assert "metadata.name" in message


@pytest.mark.parametrize("body", [[], 7, None, {}, {"metadata": 1, "spec": 2}, {"spec": []}, {"metadata": []}])
async def test_bodies_of_other_shapes(world: World, body: Any) -> None:
    assert 400 <= (await world.ask(body, await world.token()))[0] < 500


async def test_a_host_renews_for_itself_only_and_others_join_nothing(world: World, tmp_path: Path) -> None:
    found = await world.join("self", await world.token())
    client = world.client(found)
    assert (await client.create(register.JOIN, request("self")))["status"]["certificate"]
    with pytest.raises(ApiError, match="may ask for itself only"):
        await client.create(register.JOIN, request("n1"))
    await client.close()
    connector = aiohttp.TCPConnector(ssl=world.server.context("somebody", ("people",)))
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.post(world.server.url + JOINS, json=request("n9")) as answer:
            assert answer.status == 403
        async with session.get(world.server.url + JOINS) as answer:
            assert answer.status in (403, 405)


async def test_an_agent_renews_its_certificate_and_learns_of_new_authorities(world: World, tmp_path: Path) -> None:
    settings = Settings(
        state_dir=tmp_path / "s", run_dir=tmp_path / "r", user="", api_url=world.server.url, host_name="renews"
    )
    found = await world.join("renews", await world.token())
    installation.keep_identity(settings, found.certificate, found.key, found.authorities)
    files = installation.prepare(settings)
    assert not settings.plane_dir.exists()
    assert not await joining._is_new_authority(settings)
    await joining.renew(settings)
    assert files.agent.certificate.read_bytes() != found.certificate
    pki.client_context(files.ca, files.agent)  # certificate and key belong together
    pki.introduce(world.server.authority, "next")
    try:
        assert await joining._is_new_authority(settings)
        await joining.renew(settings)
        assert len(pki.fingerprints(files.ca.read_bytes())) == 2
        assert pki.fingerprints(files.ca.read_bytes())[0] == world.pin
    finally:
        pki.next_key(world.server.authority).unlink()
        pki.drop(world.server.authority)


async def test_everybody_is_told_authorities_and_time_and_nothing_else(world: World) -> None:
    connector = aiohttp.TCPConnector(ssl=world.server.anonymous())
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(world.server.url + ABOUT_PATH) as answer,
    ):
        told = await answer.json()
    assert set(told) == {"authorities", "time"}
    assert "PRIVATE" not in told["authorities"]


async def test_tokens_as_people_type_them() -> None:
    whole = joining.ticket_from(f" abc.{SECRET}.{'a' * 64}\n")
    assert (whole.token, whole.ca_hash) == (f"abc.{SECRET}", "a" * 64)
    assert joining.ticket_from(f"abc.{SECRET}", f"sha256:{'B' * 64}").ca_hash == "b" * 64
    assert joining.ticket_from(f"abc.{SECRET}.{'a' * 64}", "b" * 64).ca_hash == "b" * 64
    for wrong in ("", "abc", f"abc.{SECRET}", f"abc.{SECRET}.{'a' * 63}", f"../x.{SECRET}.{'a' * 64}"):
        with pytest.raises(NotJoined):
            joining.ticket_from(wrong)

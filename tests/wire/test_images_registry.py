"""Registries as people guard them, and images that are brought in again when their tag has moved: Debian's
docker-registry is the other side.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate
from tests.image_server import LOOPBACK, Guarded, layer, registry, registry_program
from tests.import_world import World, condition, import_world

from stead import pki
from stead.client.contract import Selection
from stead.images.child import TransferFailed
from stead.images.containerdisks import ContainerDisks, Wanted
from stead.images.sources import Access, Policy
from stead.images.transfers import Source, fill
from stead.kinds.register import CDI_CONFIG, DATA_IMPORT_CRON, DATA_SOURCE, DATA_VOLUME
from stead.storage.pools import Pool, VolumeSpec

pytestmark = pytest.mark.skipif(registry_program() is None, reason="docker-registry is not installed on this host")

MIB = 1 << 20
Object = dict[str, Any]
POLICY = Policy(allowed=LOOPBACK)
#: bcrypt of "secret"
HTPASSWD = "me:$2b$04$mGF./bdwlTRjusZ1NDUfCOYezikjtDDZOqprnJy.V3OnJ3N8Lno.u\n"
SPEC = VolumeSpec(uid="11111111-2222-3333-4444-555555555555", size_bytes=2 * MIB, namespace="default", name="disk")


@pytest.fixture
def tls(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Certificate, key and CA of a registry that only who knows the CA trusts."""
    authority = pki.ensure_authority(tmp_path / "ca", "private")
    pair = pki.Pair(tmp_path / "registry.crt", tmp_path / "registry.key")
    pki.ensure_certificate(authority, pair, pki.Identity("registry", names=("127.0.0.1",)))
    return pair.certificate, pair.key, authority.certificate


async def test_a_private_authority_and_a_password_open_a_registry(tmp_path: Path, tls: tuple[Path, Path, Path]) -> None:
    pool, data, ca = Pool(tmp_path / "pool"), os.urandom(MIB), tls[2].read_text()
    with registry(Guarded(tls=tls, login="me:secret", htpasswd=HTPASSWD)) as server:
        server.push("a/disk", "1", [layer({"disk/disk.img": data})])

        def source(**access: str) -> Source:
            return Source(
                kind="registry", url=f"docker://{server.host}/a/disk:1", access=Access(policy=POLICY, **access)
            )

        with pytest.raises(TransferFailed, match="certificate verify failed"):
            await fill(pool, SPEC, source(user="me", password="secret"))
        with pytest.raises(TransferFailed, match="authentication required"):
            await fill(pool, SPEC, source(ca_pem=ca))
        with pytest.raises(TransferFailed, match="authentication required"):
            await fill(pool, SPEC, source(ca_pem=ca, user="me", password="wrong"))
        filled = await fill(pool, SPEC, source(ca_pem=ca, user="me", password="secret"))
    assert filled.volume.path.read_bytes()[:MIB] == data


@contextmanager
def token_server(certificate: Path, key: Path) -> Iterator[str]:
    """A token server that signs for who gives the password; its URL. Source: Docker's token authentication."""
    signer = load_pem_private_key(key.read_bytes(), None)
    chain = load_pem_x509_certificate(certificate.read_bytes()).public_bytes(Encoding.DER)

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_args: Any) -> None:
            return

        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            kind, name, actions = asked.get("scope", ["repository:none:pull"])[0].split(":")
            allowed = self.headers.get("Authorization") == "Basic " + base64.b64encode(b"me:secret").decode()
            access = [{"type": kind, "name": name, "actions": actions.split(",")}] if allowed else []
            now = int(time.time())
            claims = {"iss": "test", "sub": "me", "aud": "registry", "exp": now + 300, "nbf": now - 10, "iat": now - 10,
                      "jti": os.urandom(8).hex(), "access": access}  # fmt: skip
            token = jwt.encode(claims, signer, algorithm="ES256", headers={"x5c": [base64.b64encode(chain).decode()]})  # type: ignore[arg-type]  # an EC key
            body = json.dumps({"token": token}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/token"
    finally:
        server.shutdown()
        server.server_close()


async def test_a_registry_that_asks_for_a_token_gets_one(tmp_path: Path, tls: tuple[Path, Path, Path]) -> None:
    pool, data = Pool(tmp_path / "pool"), os.urandom(MIB)
    with token_server(tls[0], tls[1]) as realm:
        auth = f"auth: {{token: {{realm: {realm}, service: registry, issuer: test, rootcertbundle: {tls[2]}}}}}\n"
        with registry(Guarded(auth=auth)) as server:
            server.bearer = _token(realm, "repository:a/disk:pull,push")
            server.push("a/disk", "1", [layer({"disk/disk.img": data})])
            url = f"docker://{server.host}/a/disk:1"

            def source(password: str) -> Source:
                access = Access(policy=POLICY, user="me", password=password)
                return Source(kind="registry", url=url, access=access, insecure=True)

            with pytest.raises(TransferFailed, match="authentication required"):
                await fill(pool, SPEC, source("wrong"))
            filled = await fill(pool, SPEC, source("secret"))
    assert filled.volume.path.read_bytes()[:MIB] == data


def _token(realm: str, scope: str) -> str:
    parts = urlsplit(realm)
    connection = http.client.HTTPConnection(parts.netloc)
    login = {"Authorization": "Basic " + base64.b64encode(b"me:secret").decode()}
    connection.request("GET", f"{parts.path}?scope={scope}", headers=login)
    return str(json.loads(connection.getresponse().read())["token"])


def _store_entry(store: ContainerDisks, digest: str) -> Path:
    return store.root / digest.replace(":", "-")


async def test_images_that_no_machine_uses_go_when_the_store_is_over_its_cap(tmp_path: Path) -> None:
    used: set[Path] = set()
    store = ContainerDisks(tmp_path / "store", cap_bytes=5 * MIB, in_use=lambda path: path in used)
    with registry() as server:
        digests = []
        for number in range(3):
            server.push(f"disks/n{number}", "1", [layer({"disk/disk.img": os.urandom(2 * MIB)})])
            wanted = Wanted(image=f"{server.host}/disks/n{number}:1", access=Access(policy=POLICY), insecure=True)
            digests.append((await store.obtain(wanted)).digest)
        assert store.collect() == []  # all were used this very minute
        for age, digest in zip((900, 600, 300), digests, strict=True):
            then = time.time() - age
            os.utime(_store_entry(store, digest) / "record.json", (then, then))
        used.add(_store_entry(store, digests[0]) / "disk")
        assert store.collect() == [digests[1].replace(":", "-")]
        assert [_store_entry(store, d).exists() for d in digests] == [True, False, True]
        again = Wanted(image=f"{server.host}/disks/n1:1", access=Access(policy=POLICY), insecure=True)
        assert (await store.obtain(again)).digest == digests[1]


LONG_AGO = "2026-01-01T00:00:00Z"


def _schedule(host: str) -> Object:
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataImportCron",
        "metadata": {"namespace": "default", "name": "tiny"},
        "spec": {
            "managedDataSource": "tiny",
            "schedule": "0 3 * * *",
            "template": {
                "spec": {
                    "source": {"registry": {"url": f"docker://{host}/os/tiny:1"}},
                    "storage": {"resources": {"requests": {"storage": "2Mi"}}},
                }
            },
        },
    }


async def _tick(world: World) -> None:
    """Let the schedule be due."""
    status = {"status": {"lastExecutionTimestamp": LONG_AGO}}
    await world.client.patch(DATA_IMPORT_CRON, "default", "tiny", status, subresource="status")
    await world.until(DATA_IMPORT_CRON, "tiny", lambda c: c["status"]["lastExecutionTimestamp"] != LONG_AGO)


async def _imports(world: World) -> list[str]:
    found = await world.client.list(DATA_VOLUME, Selection(namespace="default"))
    return [d["metadata"]["name"] for d in found.items]


async def test_only_a_moved_tag_is_imported_again_and_an_unreachable_registry_is_told_and_retried(
    tmp_path: Path,
) -> None:
    async with import_world(tmp_path) as world:
        with registry() as server:
            config = {"spec": {"insecureRegistries": [server.host]}}
            await world.client.patch(CDI_CONFIG, None, "config", config)
            digest = server.push("os/tiny", "1", [layer({"disk/disk.img": os.urandom(MIB)})])
            await world.client.create(DATA_IMPORT_CRON, _schedule(server.host))
            done = await world.until(
                DATA_IMPORT_CRON, "tiny", lambda c: condition(c, "UpToDate").get("status") == "True"
            )
            first = done["status"]["lastImportedPVC"]["name"]
            assert done["status"]["currentImports"] == [{"DataVolumeName": first, "Digest": digest}]

            await _tick(world)  # the same digest: looked up, not brought again
            steady = 0  # the look-up begins a moment after the tick was noted, and must have ended
            for _ in range(600):
                told = await world.client.get(DATA_IMPORT_CRON, "default", "tiny")
                alone = len(world.pools["default"].volumes()) == 1 and await _imports(world) == [first]
                steady = steady + 1 if alone and condition(told, "UpToDate")["status"] == "True" else 0
                if steady == 30:
                    break
                await asyncio.sleep(0.05)
            else:
                raise AssertionError(f"{await _imports(world)}: {told['status']}")
            assert told["status"]["lastImportedPVC"]["name"] == first
            port = int(server.host.rpartition(":")[2])

        await _tick(world)  # nobody answers: told, what is there stays in use
        await world.until(
            DATA_IMPORT_CRON, "tiny", lambda c: "Connection refused" in condition(c, "UpToDate").get("message", "")
        )
        source = await world.client.get(DATA_SOURCE, "default", "tiny")
        assert source["spec"]["source"]["pvc"]["name"] == first
        assert condition(source, "Ready")["status"] == "True"
        await _tick(world)
        assert len(await _imports(world)) == 2  # one at a time

        with registry(port=port) as server:
            moved = server.push("os/tiny", "1", [layer({"disk/disk.img": os.urandom(MIB)})])
            assert moved != digest
            done = await world.until(
                DATA_IMPORT_CRON, "tiny", lambda c: c["status"].get("lastImportedPVC", {}).get("name") != first
            )
            second = done["status"]["lastImportedPVC"]["name"]
            await world.until(DATA_SOURCE, "tiny", lambda s: s["spec"]["source"]["pvc"]["name"] == second)
            told = await world.until(
                DATA_IMPORT_CRON, "tiny", lambda c: condition(c, "UpToDate").get("status") == "True"
            )
            assert told["status"]["currentImports"] == [{"DataVolumeName": second, "Digest": moved}]

"""The volume worker of a host against an API in memory and real files: what a claim's owner sees."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fake_client import FakeClient
from tests.image_server import LOOPBACK, Web, web_server

from stead.agent.volumes import Hooks, Volumes, VolumeSettings
from stead.client.queue import Backoff
from stead.images.sources import Policy
from stead.kinds import register
from stead.kube.errors import ApiError
from stead.storage.pools import Pool

MIB = 1 << 20
Object = dict[str, Any]


class Host:
    """A worker that runs, and a user beside it."""

    def __init__(self, pool: Pool) -> None:
        self.client = FakeClient()
        self.pool = pool
        self.resized: list[tuple[str, int]] = []
        self.used: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self.worker = self._new()

    def _new(self) -> Volumes:
        settings = VolumeSettings(
            host_name="h1", policy=Policy(allowed=LOOPBACK), backoff=Backoff(base=0.05, cap=0.2, jitter=0.0)
        )
        hooks = Hooks(lambda path: path in self.used, lambda path, size: self.resized.append((path, size)))
        return Volumes(self.client, {"default": self.pool}, settings, hooks)

    def start(self) -> None:
        self._task = asyncio.create_task(self.worker.run())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def restart(self) -> None:
        await self.stop()
        self.worker = self._new()
        self.start()

    async def claim(self, name: str, source: Object | None = None, size: str = "8Mi", node: str = "h1") -> Object:
        annotations = {"volume.kubernetes.io/selected-node": node}
        if source:
            annotations["stead.io/source"] = json.dumps(source)
        return await self.client.create(
            register.PERSISTENT_VOLUME_CLAIM,
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "namespace": "default", "annotations": annotations},
                "spec": {"resources": {"requests": {"storage": size}}},
            },
        )

    async def see(self, name: str, wanted: Callable[[Object], object]) -> Object:
        """The claim's transfer once it is as wanted."""
        transfer: Object = {}
        for _ in range(400):
            with contextlib.suppress(ApiError):
                claim = await self.client.get(register.PERSISTENT_VOLUME_CLAIM, "default", name)
                transfer = json.loads(claim["metadata"]["annotations"].get("stead.io/transfer", "{}"))
                if wanted(transfer):
                    return {**transfer, "claim": claim}
            await asyncio.sleep(0.05)
        raise AssertionError(f"claim {name} was last seen with {transfer}")

    async def finished(self, name: str) -> Object:
        return await self.see(name, lambda t: t.get("phase") == "Succeeded")

    def disk(self, claim: Object) -> Path:
        return self.pool.disk_path(claim["metadata"]["uid"])


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    running = Host(Pool(tmp_path / "pool"))
    running.start()
    yield running
    await running.stop()


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as running:
        yield running


async def test_a_blank_claim_gets_a_sparse_disk_and_a_handle_without_a_path(host: Host) -> None:
    await host.claim("blank", size="1Gi")
    seen = await host.finished("blank")
    handle = seen["claim"]["metadata"]["annotations"]["stead.io/volume-handle"]
    assert handle == f"{host.pool.uid}/{seen['claim']['metadata']['uid']}"
    assert seen["virtualSize"] == 1 << 30
    assert host.disk(seen["claim"]).stat().st_size == 1 << 30
    assert host.disk(seen["claim"]).stat().st_blocks == 0


async def test_claims_of_other_hosts_are_left_alone(host: Host) -> None:
    await host.claim("theirs", node="h2")
    await host.claim("ours")
    await host.finished("ours")
    assert len(host.pool.volumes()) == 1


async def test_an_import_is_tried_again_until_the_source_is_there(host: Host, web: Web) -> None:
    await host.claim("image", {"kind": "http", "url": web.url("disk")})
    waiting = await host.see("image", lambda t: t.get("restarts", 0) >= 2)
    assert waiting["phase"] in ("Pending", "Running")
    web.files["disk"] = os.urandom(2 * MIB)
    done = await host.finished("image")
    assert host.disk(done["claim"]).read_bytes()[: 2 * MIB] == web.files["disk"]
    assert done["progress"] == "100.0%"
    events = [e for e in host.client.of("events") if e["reason"] == "ImportFailed"]
    assert "expected status code 200, got 404" in events[0]["message"]


async def test_a_wrong_checksum_fails_for_good(host: Host, web: Web) -> None:
    web.files["disk"] = os.urandom(MIB)
    await host.claim("image", {"kind": "http", "url": web.url("disk"), "checksum": "md5:" + "0" * 32})
    failed = await host.see("image", lambda t: t.get("phase") == "Failed")
    assert failed["reason"] == "ChecksumError"
    await asyncio.sleep(0.3)
    assert [name for name, _ in web.seen] == ["disk"]


async def test_credentials_come_from_the_secret(host: Host, web: Web) -> None:
    web.basic, web.files["disk"] = "me:secret", os.urandom(MIB)
    await host.claim("image", {"kind": "http", "url": web.url("disk"), "secretRef": "login"})
    waiting = await host.see("image", lambda t: t.get("restarts", 0) >= 1 and t.get("message"))
    assert "Secret default/login" in waiting["message"]
    await host.client.create(
        register.SECRET,
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "login", "namespace": "default"},
            "data": {"accessKeyId": "bWU=", "secretKey": "c2VjcmV0"},
        },
    )
    await host.finished("image")


async def test_a_clone_waits_for_a_source_in_use_and_grows_to_its_claim(host: Host, web: Web) -> None:
    web.files["disk"] = os.urandom(MIB)
    await host.claim("golden", {"kind": "http", "url": web.url("disk")})
    golden = await host.finished("golden")
    host.used.add(str(host.disk(golden["claim"])))
    await host.claim("copy", {"kind": "pvc", "namespace": "default", "name": "golden"}, size="16Mi")
    waiting = await host.see("copy", lambda t: t.get("reason"))
    assert waiting["reason"] == "CloneSourceInUse"
    host.used.clear()
    copy = await host.finished("copy")
    assert copy["virtualSize"] == 16 * MIB
    assert host.disk(copy["claim"]).read_bytes()[:MIB] == web.files["disk"]


async def test_a_claim_that_asks_for_more_grows_its_volume(host: Host) -> None:
    await host.claim("disk")
    await host.finished("disk")
    patch = {"spec": {"resources": {"requests": {"storage": "32Mi"}}}}
    await host.client.patch(register.PERSISTENT_VOLUME_CLAIM, "default", "disk", patch)
    grown = await host.see("disk", lambda t: t.get("virtualSize") == 32 * MIB)
    assert host.disk(grown["claim"]).stat().st_size == 32 * MIB
    assert host.resized == [(str(host.disk(grown["claim"])), 32 * MIB)]


async def _body(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 65536):
        yield data[start : start + 65536]


async def test_an_upload_is_awaited_taken_once_and_refused_afterwards(host: Host) -> None:
    await host.claim("up", {"kind": "upload"})
    ready = await host.see("up", lambda t: t.get("phase") == "Pending")
    assert "stead.io/volume-handle" in ready["claim"]["metadata"]["annotations"]
    with pytest.raises(ApiError) as refused:
        await host.worker.upload("default", "up", "", _body(b"QFI\xfb" + bytes(4096)))
    assert refused.value.code == 400
    data = os.urandom(MIB)
    assert await host.worker.upload("default", "up", "", _body(data)) == {"status": "Success"}
    done = await host.finished("up")
    assert host.disk(done["claim"]).read_bytes()[:MIB] == data
    with pytest.raises(ApiError) as again:
        await host.worker.upload("default", "up", "", _body(data))
    assert again.value.code == 409
    with pytest.raises(ApiError) as unknown:
        await host.worker.upload("default", "nothing", "", _body(data))
    assert unknown.value.code == 404


async def test_deleting_a_claim_in_the_middle_of_its_import_leaves_nothing(host: Host, web: Web) -> None:
    web.files["disk"], web.slow_seconds = os.urandom(MIB), 20
    await host.claim("image", {"kind": "http", "url": web.url("disk")})
    while not web.seen:
        await asyncio.sleep(0.05)
    await host.client.delete(register.PERSISTENT_VOLUME_CLAIM, "default", "image")
    for _ in range(100):
        if not host.pool.partials():
            break
        await asyncio.sleep(0.05)
    assert host.pool.partials() == []
    assert host.pool.volumes() == []


async def test_after_a_restart_an_interrupted_import_is_begun_again(host: Host, web: Web) -> None:
    web.files["disk"], web.slow_seconds = os.urandom(MIB), 20
    await host.claim("image", {"kind": "http", "url": web.url("disk")})
    while not web.seen:
        await asyncio.sleep(0.05)
    await host.stop()
    web.slow_seconds = 0
    await host.restart()
    done = await host.finished("image")
    assert host.disk(done["claim"]).read_bytes()[:MIB] == web.files["disk"]


@pytest.mark.parametrize("policy", ["Delete", "Retain"])
async def test_a_released_volume_is_removed_as_its_policy_says(host: Host, policy: str) -> None:
    await host.claim("disk")
    seen = await host.finished("disk")
    uid = seen["claim"]["metadata"]["uid"]
    await host.client.create(
        register.PERSISTENT_VOLUME,
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"pvc-{uid}", "finalizers": ["stead.io/volume"]},
            "spec": {
                "persistentVolumeReclaimPolicy": policy,
                "csi": {"driver": "stead.io", "volumeHandle": host.pool.handle(uid)},
            },
        },
    )
    await host.client.delete(register.PERSISTENT_VOLUME, None, f"pvc-{uid}")
    for _ in range(100):
        if not host.client.of("persistentvolumes"):
            break
        await asyncio.sleep(0.05)
    assert host.client.of("persistentvolumes") == []
    assert host.disk(seen["claim"]).exists() == (policy == "Retain")

"""Instances, volumes and the loopback web server that several benchmarks use, through Stead's public API only."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from stead.client.contract import Selection
from stead.kinds import register
from stead.kube.errors import ApiError

from .rig import Rig, free_port

Object = dict[str, Any]
NAMESPACE = "default"
MEMORY_MIB = 128
XML_PATH = "/apis/subresources.stead.io/v1alpha1/namespaces/{}/virtualmachineinstances/{}/xml"


@contextlib.asynccontextmanager
async def served(folder: Path) -> AsyncIterator[str]:
    """Serve a folder by HTTP on loopback; gives its URL."""
    app = web.Application()
    app.router.add_static("/", folder)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


def instance(name: str, claim: str) -> Object:
    """A bare instance: an existing claim, masquerade, cloud-init; small, so that the host's work is what is seen."""
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "domain": {
                "memory": {"guest": f"{MEMORY_MIB}Mi"},
                "devices": {
                    "disks": [
                        {"name": "root", "disk": {"bus": "virtio"}},
                        {"name": "seed", "disk": {"bus": "virtio"}},
                    ],
                    "interfaces": [{"name": "default", "masquerade": {}}],
                },
            },
            "networks": [{"name": "default", "pod": {}}],
            "volumes": [
                {"name": "root", "persistentVolumeClaim": {"claimName": claim}},
                {"name": "seed", "cloudInitNoCloud": {"userData": f"#cloud-config\nhostname: {name}\n"}},
            ],
        },
    }


def data_volume(name: str, url: str, size: str) -> Object:
    """A volume imported from a URL."""
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "source": {"http": {"url": url}},
            "storage": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
        },
    }


async def create_and_follow(
    rig: Rig, resource: Any, item: Object, done: Callable[[Object], bool], seconds: float = 120
) -> tuple[float, list[tuple[float, Object]]]:
    """Create an object with a watch open; returns the seconds until a state seen on the watch is `done`, and what was
    seen when. Raises TimeoutError with the last status.
    """
    name = item["metadata"]["name"]
    version = (await rig.client.list(resource, Selection(namespace=NAMESPACE))).resource_version
    seen: list[tuple[float, Object]] = []
    finished = asyncio.get_running_loop().create_future()
    failed = asyncio.get_running_loop().create_future()
    begun = 0.0

    async def follow() -> None:
        selection = Selection(namespace=NAMESPACE, fields=f"metadata.name={name}")
        async for event in rig.client.watch(resource, selection, version):
            if event.type == "BOOKMARK":
                continue
            seen.append((time.perf_counter() - begun, event.object))
            if done(event.object) and not finished.done():
                finished.set_result(seen[-1][0])
            if event.object.get("status", {}).get("phase") == "Failed" and not failed.done():
                failed.set_result(event.object["status"])

    watching = asyncio.create_task(follow())
    await asyncio.sleep(0.05)  # the watch is open
    try:
        begun = time.perf_counter()
        await rig.client.create(resource, item)
        async with asyncio.timeout(seconds):
            await asyncio.wait({watching, finished, failed}, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            raise OSError(f"{resource.kind} {name} failed: {failed.result()}")
        if not finished.done():
            watching.result()
            raise OSError(f"the watch of {resource.kind} {name} ended early")
        return float(finished.result()), seen
    except TimeoutError as error:
        status = seen[-1][1].get("status") if seen else "nothing seen"
        raise TimeoutError(f"{resource.kind} {name}: not done after {seconds:.0f} s: {status}") from error
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def has_phase(phase: str) -> Callable[[Object], bool]:
    """Whether an object's status says so."""

    def check(item: Object) -> bool:
        return bool(item.get("status", {}).get("phase") == phase)

    return check


async def remove(rig: Rig, resource: Any, name: str, seconds: float = 60) -> None:
    """Delete an object and wait until it is gone."""
    with contextlib.suppress(ApiError):
        await rig.client.delete(resource, NAMESPACE, name)
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = await rig.client.get(resource, NAMESPACE, name)
        except ApiError as error:
            if error.code == 404:
                return
            raise
        if time.monotonic() > deadline:
            raise TimeoutError(f"{resource.kind} {name} is still there after {seconds:.0f} s: {found.get('status')}")
        await asyncio.sleep(0.05)


async def import_disk(rig: Rig, name: str, image: Path, size: str = "1Gi") -> None:
    """Make a claim `name` that holds the image."""
    async with served(image.parent) as url:
        item = data_volume(name, f"{url}/{image.name}", size)
        await create_and_follow(rig, register.DATA_VOLUME, item, has_phase("Succeeded"))

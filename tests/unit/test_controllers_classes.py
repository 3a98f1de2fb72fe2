"""StorageClasses for pools: what a user finds to choose from."""

from __future__ import annotations

from typing import Any

from controller_world import plane
from stead.controllers.classes import decide_classes
from stead.kinds.register import NODE, STORAGE_CLASS

Object = dict[str, Any]


def host(name: str, *pools: str) -> Object:
    return {"metadata": {"name": name, "labels": {f"pool.stead.io/{p}": "uid" for p in pools} | {"x/y": "z"}}}


def test_each_pool_but_default_gets_one_class_however_many_hosts_have_it() -> None:
    plan = decide_classes([host("b", "default", "fast"), host("a", "fast", "images")], [])
    assert [(c["metadata"]["name"], c["parameters"]) for c in plan.make] == [
        ("fast", {"pool": "fast"}),
        ("images", {"pool": "images"}),
    ]
    assert not decide_classes([host("a", "fast")], plan.make).make


def test_a_name_taken_by_a_foreign_class_is_told_and_left_alone() -> None:
    foreign = {"metadata": {"name": "fast"}, "provisioner": "nfs.example"}
    plan = decide_classes([host("a", "fast")], [foreign])
    assert (plan.make, plan.taken) == ((), (("a", "fast", "nfs.example"),))


async def test_a_pool_that_a_host_brings_can_be_asked_for_and_local_stays_the_default() -> None:
    async with plane() as p:
        await p.client.patch(NODE, None, "host1", {"metadata": {"labels": {"pool.stead.io/images": "u2"}}})
        made = await p.until(STORAGE_CLASS, "images", bool)
        assert made["provisioner"] == "stead.io"
        annotations = made["metadata"].get("annotations") or {}
        assert annotations.get("storageclass.kubernetes.io/is-default-class") != "true"
        await p.client.delete(STORAGE_CLASS, None, "images")
        assert await p.until(STORAGE_CLASS, "images", lambda c: c["metadata"]["uid"] != made["metadata"]["uid"])

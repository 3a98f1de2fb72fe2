"""Several planes on one etcd: the same state everywhere at once, one leader, keys that all share."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from stead.cli import prove
from stead.client.contract import Selection
from stead.client.direct import DirectClient
from stead.client.kubeconfig import load
from stead.kinds import register
from stead.kube.errors import ApiError

proof: Any = prove.load("etcd")


async def _holder(client: DirectClient) -> str:
    try:
        lease = await client.get(register.LEASE, "kube-system", "stead-controllers")
    except ApiError:
        return ""
    return str(lease["spec"].get("holderIdentity") or "")


async def _soon(question: Any, what: str, seconds: float = 90) -> Any:
    async with asyncio.timeout(seconds):
        while not (answer := await question()):
            await asyncio.sleep(0.2)
    assert answer, what
    return answer


async def test_planes_share_state_and_keys_and_another_leads_when_the_leader_dies() -> None:
    async with proof.site_of((), random.Random(1)) as site:
        clients = [DirectClient(load(plane.kubeconfig)) for plane in site.planes]
        try:
            await _all_see_each_others_writes(clients)
            await _certificates_and_tokens_are_good_everywhere(site, clients)
            leader = await _soon(lambda: _holder(clients[0]), "somebody leads")
            pids = [plane.pids()["plane"] for plane in site.planes]
            number = next(index for index, pid in enumerate(pids) if leader.endswith(f"-{pid}"))
            await site.kill(number)
            other = clients[(number + 1) % len(clients)]

            async def changed() -> bool:
                return await _holder(other) not in ("", leader)

            await _soon(changed, "another plane leads")
            await other.create(register.NAMESPACE, {"metadata": {"name": "after"}})

            async def furnished() -> bool:
                found = await other.list(register.SERVICE_ACCOUNT, Selection(namespace="after"))
                return bool(found.items)

            await _soon(furnished, "the new leader's controllers work")
        finally:
            for client in clients:
                await client.close()


async def _all_see_each_others_writes(clients: list[DirectClient]) -> None:
    for number in range(12):
        writer, reader, deleter = (clients[(number + each) % len(clients)] for each in range(3))
        name = f"shared-{number}"
        await writer.create(register.CONFIG_MAP, {"metadata": {"name": name, "namespace": "default"}, "data": {}})
        found = await reader.get(register.CONFIG_MAP, "default", name)  # a moment later, from another plane
        await reader.update(register.CONFIG_MAP, {**found, "data": {"a": "b"}})
        await deleter.delete(register.CONFIG_MAP, "default", name)
        listed = await writer.list(register.CONFIG_MAP, Selection(namespace="default"))
        assert name not in [item["metadata"]["name"] for item in listed.items]


async def _certificates_and_tokens_are_good_everywhere(site: Any, clients: list[DirectClient]) -> None:
    kubeconfigs = {plane.kubeconfig.read_text().split("certificate-authority-data: ")[1].split("\n")[0]
                   for plane in site.planes}  # fmt: skip
    assert len(kubeconfigs) == 1, "one authority"
    first, second = site.planes[0], site.planes[1]
    endpoint = load(first.kubeconfig)
    elsewhere = DirectClient(type(endpoint)(**{**_fields(endpoint), "server": load(second.kubeconfig).server}))
    try:
        assert (await elsewhere.get(register.NAMESPACE, None, "default"))["metadata"]["name"] == "default"
    finally:
        await elsewhere.close()


def _fields(endpoint: Any) -> dict[str, Any]:
    return {name: getattr(endpoint, name) for name in endpoint.__struct_fields__}

"""How fast machines are placed: decisions a second by placement's book at 10, 100 and 1,000 hosts, and 8,000 on 1,000.

No rival runs here; kube-scheduler's own documents speak of 100 pods a second, which is the target. Every decision does
what the controller does: reads the instance's demand out of its spec, chooses, enters the outcome. One in twenty
machines has an anti-affinity or a spread constraint. No I/O, no processes: what is measured is the pure core.
"""

from __future__ import annotations

import time
from typing import Any

from stead.controllers.machine_demand import Surroundings, demand_from, use_from
from stead.controllers.placement_book import Book
from stead.controllers.placement_terms import Neighbour, labels_as_pod

from .figures import Figure, Request, Result

Object = dict[str, Any]
HOSTS = (10, 100, 1000)
MACHINES_A_HOST = 8
TARGET = 100.0


def node(number: int) -> Object:
    """A host of 16 processors and 64 GiB, in one of ten zones, with forty labels of CPU models."""
    name = f"host-{number:04}"
    labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": f"zone-{number % 10}"}
    labels |= {f"cpu-model.node.kubevirt.io/model-{each}": "true" for each in range(40)}
    conditions = [{"type": "Ready", "status": "True"}]
    status = {"allocatable": {"cpu": "16", "memory": "64Gi"}, "conditions": conditions}
    return {"metadata": {"name": name, "labels": labels}, "status": status}


def instance(number: int) -> Object:
    """A machine of 1 processor and 1 GiB, of one of 200 groups."""
    group = f"group-{number % 200}"
    spec: Object = {"domain": {"cpu": {"cores": 1}, "memory": {"guest": "1Gi"}, "devices": {}}}
    term = {"topologyKey": "topology.kubernetes.io/zone", "labelSelector": {"matchLabels": {"group": group}}}
    if number % 40 == 0:
        preferred = [{"weight": 10, "podAffinityTerm": term}]
        spec["affinity"] = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    elif number % 40 == 20:
        spec["topologySpreadConstraints"] = [{**term, "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}]
    metadata = {"name": f"vm-{number}", "namespace": "default", "uid": f"uid-{number}", "labels": {"group": group}}
    return {"metadata": metadata, "spec": spec}


def _place(book: Book, vmi: Object) -> bool:
    demand = demand_from(vmi, Surroundings(), lambda _: frozenset())
    chosen = book.place(demand)
    if chosen.host is None:
        return False
    book.put_machine(vmi["metadata"]["uid"], use_from(vmi), Neighbour(chosen.host, "default", labels_as_pod(vmi)))
    return True


async def run(request: Request) -> Result:
    """See the module."""
    figures: dict[str, Figure] = {}
    rows: list[dict[str, Any]] = []
    hosts = HOSTS[:2] if request.quick else HOSTS
    for count in hosts:
        book = Book()
        for number in range(count):
            book.put_host(node(number))
        wanted = request.n or count * MACHINES_A_HOST
        begun = last = time.perf_counter()
        placed = 0
        for number in range(wanted):
            placed += _place(book, instance(number))
            now = time.perf_counter()
            rows.append({"hosts": count, "machine": number, "seconds": now - last})
            last = now
        rate = wanted / (last - begun)
        note = f"{placed} of {wanted} machines placed"
        figures[f"decisions_{count}"] = Figure(
            ours=rate, unit="1/s", target=TARGET, bound=">=", judged="ours", note=note
        )
    return Result(name="placement", n=len(rows), figures=figures, rows=rows)

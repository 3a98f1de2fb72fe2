"""The book of placement beside a scheduler of another hand that looks at everything each time."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fake_agent import ready_node

from stead.controllers.machine_demand import Surroundings, demand_from, use_from
from stead.controllers.placement_book import Book
from stead.controllers.placement_terms import Neighbour, labels_as_pod, wishes_from

Object = dict[str, Any]
ZONES, APPS = ("a", "b"), ("web", "db")
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def nothing(_: object) -> frozenset[str]:
    return frozenset()


def node(name: str, zone: str | None, cpu: int, is_cordoned: bool) -> Object:
    found = ready_node(name, cpu=str(cpu), memory="1Gi", labels={"zone": zone} if zone else {})
    return {**found, "spec": {"unschedulable": is_cordoned}}


def term(app: str, key: str) -> Object:
    return {"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}


TERMS = st.builds(term, st.sampled_from(APPS), st.sampled_from(("zone", "kubernetes.io/hostname")))
SPREADS = st.builds(
    lambda of, skew: {**of, "maxSkew": skew, "whenUnsatisfiable": "DoNotSchedule"}, TERMS, st.integers(1, 2)
)


@st.composite
def machines(draw: Any, uid: int) -> Object:
    spec: Object = {
        "domain": {"cpu": {"cores": draw(st.integers(1, 12))}, "memory": {"guest": "64Mi"}, "devices": {}},
        "affinity": {
            "podAffinity": {REQUIRED: draw(st.lists(TERMS, max_size=1))},
            "podAntiAffinity": {REQUIRED: draw(st.lists(TERMS, max_size=1))},
        },
        "topologySpreadConstraints": draw(st.lists(SPREADS, max_size=1)),
    }
    labels = {"app": draw(st.sampled_from(APPS))}
    metadata = {"name": f"m{uid}", "uid": f"u{uid}", "namespace": draw(st.sampled_from(("x", "y"))), "labels": labels}
    return {"metadata": metadata, "spec": spec}


def feasible(vmi: Object, host: Object, hosts: list[Object], placed: dict[str, tuple[Object, str]]) -> bool:
    """By the words of Kubernetes' documentation, over everything there is."""
    if host["spec"]["unschedulable"]:
        return False
    by_name = {each["metadata"]["name"]: each for each in hosts}
    labels = {name: each["metadata"]["labels"] for name, each in by_name.items()}
    name = host["metadata"]["name"]
    there = [other for other, where in placed.values() if where == name]
    cores = sum(other["spec"]["domain"]["cpu"]["cores"] for other in [*there, vmi])
    memory = sum(use_from(other).memory for other in [*there, vmi])
    if cores * 100 > int(host["status"]["allocatable"]["cpu"]) * 1000 or memory > 1024**3:
        return False

    def meant(wanted: Object, of: Object, other: Object) -> bool:
        same = of["metadata"]["namespace"] == other["metadata"]["namespace"]
        return bool(same and other["metadata"]["labels"]["app"] == wanted["labelSelector"]["matchLabels"]["app"])

    def near(wanted: Object, where: str) -> bool:
        place = labels[name].get(wanted["topologyKey"])
        return place is not None and where in labels and labels[where].get(wanted["topologyKey"]) == place

    alive = [(other, where) for other, where in placed.values() if where in by_name]
    for wanted in vmi["spec"]["affinity"]["podAffinity"][REQUIRED]:
        if wanted["topologyKey"] not in labels[name]:
            return False
        met = [where for other, where in alive if meant(wanted, vmi, other) and wanted["topologyKey"] in labels[where]]
        if not any(near(wanted, where) for where in met) and (met or not meant(wanted, vmi, vmi)):
            return False
    for wanted in vmi["spec"]["affinity"]["podAntiAffinity"][REQUIRED]:
        if any(meant(wanted, vmi, other) and near(wanted, where) for other, where in alive):
            return False
    for other, where in alive:
        for wanted in other["spec"]["affinity"]["podAntiAffinity"][REQUIRED]:
            if meant(wanted, other, vmi) and near(wanted, where):
                return False
    for wanted in vmi["spec"]["topologySpreadConstraints"]:
        key = wanted["topologyKey"]
        if key not in labels[name]:
            return False
        counts = {
            value: sum(1 for o, w in alive if meant(wanted, vmi, o) and labels[w].get(key) == value)
            for value in {each[key] for each in labels.values() if key in each}
        }
        own = 1 if meant(wanted, vmi, vmi) else 0
        if counts[labels[name][key]] + own - min(counts.values()) > wanted["maxSkew"]:
            return False
    return True


def enter(book: Book, vmi: Object, host: str) -> None:
    apart = wishes_from(vmi, nothing).apart
    where = Neighbour(host, vmi["metadata"]["namespace"], labels_as_pod(vmi), apart)
    book.put_machine(vmi["metadata"]["uid"], use_from(vmi), where)


NODES = st.lists(st.tuples(st.sampled_from((*ZONES, None)), st.integers(1, 3), st.booleans()), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_choices_are_those_of_one_who_looks_at_everything(data: st.DataObject) -> None:
    hosts = [node(f"h{at}", *facts) for at, facts in enumerate(data.draw(NODES))]
    book, placed = Book(), {}
    for each in hosts:
        book.put_host(each)
    for uid in range(data.draw(st.integers(1, 10))):
        vmi = data.draw(machines(uid))
        chosen = book.place(demand_from(vmi, Surroundings(), nothing))
        suited = {h["metadata"]["name"] for h in hosts if feasible(vmi, h, hosts, placed)}
        if chosen.host is None:
            assert suited == set()
            assert set(chosen.reasons) == {h["metadata"]["name"] for h in hosts}
            assert all(chosen.reasons.values())
        else:
            assert chosen.host in suited
            enter(book, vmi, chosen.host)
            placed[vmi["metadata"]["uid"]] = (vmi, chosen.host)
        _something_changes(data, book, hosts, placed)


def _something_changes(data: st.DataObject, book: Book, hosts: list[Object], placed: dict[str, Any]) -> None:
    match data.draw(st.sampled_from(("nothing", "machine", "host", "host comes", "host goes"))):
        case "machine" if placed:
            uid = data.draw(st.sampled_from(sorted(placed)))
            book.drop_machine(uid)
            del placed[uid]
        case "host":
            at = data.draw(st.integers(0, len(hosts) - 1))
            zone, cpu, is_cordoned = data.draw(NODES)[0]
            hosts[at] = node(hosts[at]["metadata"]["name"], zone, cpu, is_cordoned)
            book.put_host(hosts[at])
        case "host comes":
            hosts.append(node(f"h{len(hosts)}", "a", 2, False))
            book.put_host(hosts[-1])
        case "host goes" if len(hosts) > 1:
            book.drop_host(hosts.pop()["metadata"]["name"])

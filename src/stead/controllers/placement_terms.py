"""Which other machines a machine wants near, apart, or evenly spread; and who lives where, counted as it changes. Pure.

`wishes_from` reads affinity, anti-affinity and topology spread constraints out of an instance's spec, with the meaning
that kube-scheduler gives them for pods; the labels counted are the instance's and those of its launcher pod.
`Neighbours` keeps, for each term that somebody has asked about, how many matching machines live on each host: a change
costs one look at each known term, a question costs one look at each host, never one at each machine.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from stead.kube.errors import ApiError
from stead.kube.selectors import LabelSelector, Requirement, labels_from_object

Object = dict[str, Any]

REQUIRED, PREFERRED = (
    "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution",
)
#: terms whose counts are kept; beyond, the one asked about longest ago is counted anew when it is asked about again
KEPT_TERMS = 512
#: finds the namespaces that a (not empty) label selector selects
NamespaceFinder = Callable[[LabelSelector], frozenset[str]]


class Term(msgspec.Struct, frozen=True):
    """Machines, and the host label by whose value places are told apart. `namespaces` None = all of them."""

    key: str
    selector: LabelSelector | None
    namespaces: frozenset[str] | None

    def matches(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether a machine is meant."""
        if self.selector is None or (self.namespaces is not None and namespace not in self.namespaces):
            return False
        return self.selector.matches(labels)


class Spread(msgspec.Struct, frozen=True):
    """A topology spread constraint; `hard` = DoNotSchedule. The policies say which hosts' places count."""

    term: Term
    max_skew: int
    hard: bool
    min_domains: int = 1
    honours_affinity: bool = True
    honours_taints: bool = False


class Wishes(msgspec.Struct, frozen=True):
    """What a machine asks of its neighbourhood. `preferred`: (weight, term), a negative weight for apart."""

    near: tuple[Term, ...] = ()
    apart: tuple[Term, ...] = ()
    preferred: tuple[tuple[int, Term], ...] = ()
    spreads: tuple[Spread, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.near or self.apart or self.preferred or self.spreads)


def labels_as_pod(vmi: Object) -> dict[str, str]:
    """Labels by which other machines' terms find this one: those of its launcher pod."""
    metadata = vmi["metadata"]
    own = metadata.get("labels") or {}
    return {**own, "kubevirt.io": "virt-launcher", "vm.kubevirt.io/name": metadata["name"]}


def wishes_from(vmi: Object, find_namespaces: NamespaceFinder) -> Wishes:
    """The wishes of an instance. Selectors that cannot be read select nothing."""
    spec = vmi.get("spec") or {}
    affinity = spec.get("affinity") or {}
    near, apart = affinity.get("podAffinity") or {}, affinity.get("podAntiAffinity") or {}
    constraints = spec.get("topologySpreadConstraints") or ()
    if not near and not apart and not constraints:
        return Wishes()
    own, labels = vmi["metadata"].get("namespace", ""), labels_as_pod(vmi)

    def terms(of: Iterable[Object]) -> tuple[Term, ...]:
        return tuple(_term(each, own, labels, find_namespaces) for each in of)

    preferred = [(int(w.get("weight") or 0), w.get("podAffinityTerm") or {}) for w in near.get(PREFERRED) or ()]
    preferred += [(-int(w.get("weight") or 0), w.get("podAffinityTerm") or {}) for w in apart.get(PREFERRED) or ()]
    weighed = tuple((weight, _term(each, own, labels, find_namespaces)) for weight, each in preferred)
    return Wishes(
        near=terms(near.get(REQUIRED) or ()),
        apart=terms(apart.get(REQUIRED) or ()),
        preferred=weighed,
        spreads=tuple(_spread(constraint, own, labels) for constraint in constraints),
    )


def _selector(selector: Object | None, more: list[Requirement]) -> LabelSelector | None:
    try:
        found = labels_from_object(selector)
    except ApiError:
        return None
    return found if found is None or not more else LabelSelector((*found.requirements, *more))


def _same(keys: Iterable[str], labels: Mapping[str, str], op: str) -> list[Requirement]:
    return [Requirement(key, op, (labels[key],)) for key in keys if key in labels]


def _term(term: Object, own: str, labels: Mapping[str, str], find_namespaces: NamespaceFinder) -> Term:
    more = _same(term.get("matchLabelKeys") or (), labels, "in")
    more += _same(term.get("mismatchLabelKeys") or (), labels, "notin")
    named, by_label = term.get("namespaces") or (), term.get("namespaceSelector")
    namespaces: frozenset[str] | None = frozenset(named or (() if by_label is not None else (own,)))
    if by_label is not None:
        chosen = _selector(by_label, [])
        if chosen is not None and not chosen:
            namespaces = None
        elif chosen is not None:
            namespaces = frozenset(named) | find_namespaces(chosen)
    return Term(str(term.get("topologyKey") or ""), _selector(term.get("labelSelector"), more), namespaces)


def _spread(constraint: Object, own: str, labels: Mapping[str, str]) -> Spread:
    more = _same(constraint.get("matchLabelKeys") or (), labels, "in")
    selector = _selector(constraint.get("labelSelector"), more)
    return Spread(
        term=Term(str(constraint.get("topologyKey") or ""), selector, frozenset((own,))),
        max_skew=int(constraint.get("maxSkew") or 1),
        hard=constraint.get("whenUnsatisfiable") != "ScheduleAnyway",
        min_domains=int(constraint.get("minDomains") or 1),
        honours_affinity=constraint.get("nodeAffinityPolicy") != "Ignore",
        honours_taints=constraint.get("nodeTaintsPolicy") == "Honor",
    )


class Neighbour(msgspec.Struct, frozen=True):
    """A machine that has a host. `apart`: its own required anti-affinity, which binds those who come later too."""

    host: str
    namespace: str
    labels: dict[str, str]
    apart: tuple[Term, ...] = ()


class Neighbours:
    """See the module's prose. Not shared between threads."""

    def __init__(self) -> None:
        self._all: dict[str, Neighbour] = {}
        self._counts: OrderedDict[Term, Counter[str]] = OrderedDict()
        self._apart: dict[Term, Counter[str]] = {}

    def put(self, key: str, found: Neighbour) -> None:
        """A machine is there, or has changed."""
        self.drop(key)
        self._all[key] = found
        self._count(found, 1)

    def drop(self, key: str) -> None:
        """A machine is gone; nothing when it was never there."""
        found = self._all.pop(key, None)
        if found is not None:
            self._count(found, -1)

    def _count(self, found: Neighbour, step: int) -> None:
        for term, counts in self._counts.items():
            if term.matches(found.namespace, found.labels):
                _add(counts, found.host, step)
        for term in found.apart:
            counts = self._apart.setdefault(term, Counter())
            _add(counts, found.host, step)
            if not counts:
                del self._apart[term]

    @property
    def has_averse(self) -> bool:
        """Whether any machine's own anti-affinity binds those who come later."""
        return bool(self._apart)

    def by_host(self, term: Term) -> Counter[str]:
        """How many machines that a term means live on each host."""
        found = self._counts.get(term)
        if found is None:
            found = self._counts[term] = Counter(
                each.host for each in self._all.values() if term.matches(each.namespace, each.labels)
            )
            while len(self._counts) > KEPT_TERMS:
                self._counts.popitem(last=False)
        self._counts.move_to_end(term)
        return found

    def averse_to(self, namespace: str, labels: Mapping[str, str]) -> Iterator[tuple[str, Counter[str]]]:
        """(topology key, hosts) of machines whose own anti-affinity means a machine with those labels."""
        for term, counts in self._apart.items():
            if term.matches(namespace, labels):
                yield term.key, counts


def _add(counts: Counter[str], host: str, step: int) -> None:
    counts[host] += step
    if not counts[host]:
        del counts[host]

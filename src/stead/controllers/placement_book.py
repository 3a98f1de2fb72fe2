"""The book of hosts and of who lives there, kept as things change, and the choice of a host by it. Pure.

`controllers.instance` enters every change of a Node or an instance, and what it has just decided; a choice then looks
at each host that suits the machine once, and at no other machine. Hosts that suit equal demands are remembered as a
*class*, which a change of one host renews for that host alone. Of hosts that fit, the one with the highest wishes wins
(node affinity, neighbours, spreading), then the one with most room left, then the first by name, so that equal
questions get equal answers. Not shared between threads.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

import msgspec

from stead.controllers.placement import (
    HOSTNAME_LABEL,
    MACHINES,
    Demand,
    Facts,
    Object,
    Placement,
    Use,
    facts_from,
    first_untolerated,
    preference,
    why_no_room,
    why_not_host,
    why_not_volumes,
)
from stead.controllers.placement_rules import matches_terms, only_hosts
from stead.controllers.placement_terms import REQUIRED, Neighbour, Neighbours, Spread, Term

#: classes of demands, and outcomes of choices without a host, that are remembered
KEPT_CLASSES = 256
KEPT_FAILURES = 1024
UNLIMITED = 1 << 62


class _Host:
    """One host: its facts, the sum of what its machines take, and what is left (very much of what it does not state).

    A choice looks at every host, so what it compares is kept as plain numbers. `weight` turns free CPU and memory into
    the share of the host that is free.
    """

    __slots__ = ("cpu", "cpu_weight", "extra", "facts", "free_cpu", "free_machines", "free_memory", "machines",
                 "memory", "memory_weight", "name")  # fmt: skip

    def __init__(self, facts: Facts) -> None:
        self.name = facts.name
        self.cpu = 0
        self.memory = 0
        self.extra: Counter[str] = Counter()
        self.machines = 0
        self.learn(facts)

    def learn(self, facts: Facts) -> None:
        """The host's Node has changed."""
        self.facts = facts
        self.cpu_weight = 1 / facts.cpu_milli if facts.cpu_milli else 0.0
        self.memory_weight = 1 / facts.memory if facts.memory else 0.0
        self._settle()

    def add(self, use: Use, sign: int) -> None:
        """A machine comes (1) or goes (-1)."""
        self.cpu += sign * use.cpu_milli
        self.memory += sign * use.memory
        self.machines += sign
        for name, count in use.extra.items():
            self.extra[name] += sign * count
        self._settle()

    def _settle(self) -> None:
        facts = self.facts
        self.free_cpu = (facts.cpu_milli or UNLIMITED) - self.cpu
        self.free_memory = (facts.memory or UNLIMITED) - self.memory
        self.free_machines = facts.extra.get(MACHINES, UNLIMITED) - self.machines

    @property
    def used(self) -> Use:
        return Use(self.cpu, self.memory, dict(self.extra))

    def has(self, extra: dict[str, int]) -> bool:
        """Whether so much of further resources is left."""
        return all(self.extra[name] + count <= self.facts.extra.get(name, 0) for name, count in extra.items())


#: hosts that suit a class of demands, with how much each is liked
_Suiting = dict[str, tuple[_Host, float]]


class _Resident(msgspec.Struct, frozen=True):
    host: str
    use: Use


class Book:
    """See the module's prose."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}
        self._residents: dict[str, _Resident] = {}
        self._homeless: dict[str, set[str]] = {}  # residents of hosts that have no Node (yet)
        self._neighbours = Neighbours()
        self._classes: OrderedDict[bytes, tuple[Demand, _Suiting]] = OrderedDict()
        self._failures: OrderedDict[bytes, tuple[int, Placement]] = OrderedDict()
        #: grows when something may have made room; a choice that failed need not be asked again before
        self.version = 0

    # hosts -------------------------------------------------------------------------------------------------------

    def put_host(self, node: Object) -> bool:
        """A Node is there or has changed; True when that matters to placement."""
        facts = facts_from(node)
        known = self._hosts.get(facts.name)
        if known is not None and known.facts == facts:
            return False
        if known is None:
            known = self._hosts[facts.name] = _Host(facts)
            for key in self._homeless.pop(facts.name, ()):
                known.add(self._residents[key].use, 1)
        known.learn(facts)
        for demand, suiting in self._classes.values():
            _enter(suiting, demand, known)
        self.version += 1
        return True

    def drop_host(self, name: str) -> None:
        """A Node is gone. Its machines stay in the book, in case it comes back."""
        if self._hosts.pop(name, None) is None:
            return
        homeless = {key for key, resident in self._residents.items() if resident.host == name}
        if homeless:
            self._homeless[name] = homeless
        for _, suiting in self._classes.values():
            suiting.pop(name, None)
        self.version += 1

    def facts(self, name: str) -> Facts | None:
        """What is known of a host."""
        found = self._hosts.get(name)
        return found.facts if found is not None else None

    # machines ----------------------------------------------------------------------------------------------------

    def put_machine(self, key: str, use: Use, found: Neighbour) -> None:
        """A machine lives on a host, or has changed there; `key` is unique (a uid)."""
        self.drop_machine(key)
        self._residents[key] = _Resident(found.host, use)
        host = self._hosts.get(found.host)
        if host is not None:
            host.add(use, 1)
        else:
            self._homeless.setdefault(found.host, set()).add(key)
        self._neighbours.put(key, found)
        self.version += 1

    def drop_machine(self, key: str) -> None:
        """A machine lives nowhere any more; nothing when it never did."""
        known = self._residents.pop(key, None)
        if known is None:
            return
        host = self._hosts.get(known.host)
        if host is not None:
            host.add(known.use, -1)
        else:
            self._homeless.get(known.host, set()).discard(key)
        self._neighbours.drop(key)
        self.version += 1

    def used(self, name: str) -> Use:
        """What the machines of a host take."""
        found = self._hosts.get(name)
        return found.used if found is not None else Use()

    # choice ------------------------------------------------------------------------------------------------------

    def place(self, demand: Demand, but: Iterable[str] = ()) -> Placement:
        """The best host for a machine, `but` those named excepted; without one, why each does not do."""
        wishes = _Wishes(self, demand) if demand.wishes or self._neighbours.has_averse else None
        excluded = frozenset(but)
        bound = bool(demand.volume_affinities or demand.pinned_hosts)
        cpu, memory, extra = demand.cpu_milli, demand.memory, demand.extra
        best, best_liked, best_left = "", float("-inf"), float("-inf")
        for host, liked in _candidates(demand, self._suiting(demand)):
            if host.free_memory < memory or host.free_cpu < cpu or host.free_machines <= 0:
                continue
            if (extra and not host.has(extra)) or (bound and why_not_volumes(demand, host.facts)):
                continue
            if wishes is not None:
                if wishes.why_not(host.facts):
                    continue
                liked += wishes.liking(host.facts)
            if liked < best_liked or host.name in excluded:
                continue
            left = (host.free_memory - memory) * host.memory_weight + (host.free_cpu - cpu) * host.cpu_weight
            if liked > best_liked or left > best_left or (left == best_left and host.name < best):
                best, best_liked, best_left = host.name, liked, left
        return Placement(best, {}) if best else self._failure(demand, wishes, excluded)

    def why_not(self, demand: Demand, name: str) -> str:
        """Why the machine cannot run on that host; "" if it can."""
        host = self._hosts.get(name)
        if host is None:
            return "there is no such host"
        return self._why_not(demand, host, _Wishes(self, demand))

    def _why_not(self, demand: Demand, host: _Host, wishes: _Wishes) -> str:
        return (
            why_not_host(demand, host.facts)
            or why_not_volumes(demand, host.facts)
            or why_no_room(demand, host.facts, host.used, host.machines)
            or wishes.why_not(host.facts)
        )

    def _failure(self, demand: Demand, wishes: _Wishes | None, excluded: frozenset[str]) -> Placement:
        """The reasons, remembered for equal demands until something changes."""
        key = msgspec.msgpack.encode((demand, sorted(excluded)), enc_hook=_plain)
        known = self._failures.get(key)
        if known is not None and known[0] == self.version:
            return known[1]
        wishes = wishes or _Wishes(self, demand)
        reasons = {
            name: "it is excepted" if name in excluded else self._why_not(demand, host, wishes)
            for name, host in self._hosts.items()
        }
        found = Placement(None, reasons)
        self._failures[key] = (self.version, found)
        self._failures.move_to_end(key)
        while len(self._failures) > KEPT_FAILURES:
            self._failures.popitem(last=False)
        return found

    def _suiting(self, demand: Demand) -> _Suiting:
        """The hosts that suit, room, volumes and neighbours apart, with how much each is liked."""
        key = msgspec.msgpack.encode((
            demand.node_selector, demand.offers, demand.features, demand.bridges, demand.pools,
            demand.affinity.get("nodeAffinity"), demand.tolerations,
        ))  # fmt: skip
        known = self._classes.get(key)
        if known is None:
            suiting: _Suiting = {}
            for host in self._hosts.values():
                _enter(suiting, demand, host)
            known = self._classes[key] = (demand, suiting)
            while len(self._classes) > KEPT_CLASSES:
                self._classes.popitem(last=False)
        self._classes.move_to_end(key)
        return known[1]

    # what wishes ask ---------------------------------------------------------------------------------------------

    def by_place(self, term: Term) -> Counter[str]:
        """How many machines that a term means live in each place of its topology."""
        return self.places(term.key, self._neighbours.by_host(term))

    def places(self, key: str, by_host: Counter[str]) -> Counter[str]:
        """Counts by host as counts by the value of a host label."""
        found: Counter[str] = Counter()
        for name, count in by_host.items():
            host = self._hosts.get(name)
            value = host.facts.labels.get(key) if host is not None else None
            if value is not None:
                found[value] += count
        return found

    def averse(self, demand: Demand) -> dict[str, set[str]]:
        """Places, by topology key, where somebody lives who does not want this machine near."""
        found: dict[str, set[str]] = {}
        for key, hosts in self._neighbours.averse_to(demand.namespace, demand.labels):
            found.setdefault(key, set()).update(self.places(key, hosts))
        return found

    def spread_counts(self, spread: Spread, demand: Demand) -> Counter[str]:
        """As `by_place`, with each place that counts for the constraint, empty ones too, and no other."""
        by_host = self._neighbours.by_host(spread.term)
        found: Counter[str] = Counter()
        is_choosy = spread.honours_affinity and bool(demand.node_selector or demand.affinity.get("nodeAffinity"))
        for name, host in self._hosts.items():
            value = host.facts.labels.get(spread.term.key)
            if value is None or (is_choosy and not _is_wanted(demand, host.facts)):
                continue
            if spread.honours_taints and first_untolerated(demand, host.facts) is not None:
                continue
            found[value] += by_host.get(name, 0)
        return found


def _enter(suiting: _Suiting, demand: Demand, host: _Host) -> None:
    """Note in a class whether a host suits."""
    if why_not_host(demand, host.facts):
        suiting.pop(host.name, None)
    else:
        suiting[host.name] = (host, preference(demand, host.facts))


def _candidates(demand: Demand, suiting: _Suiting) -> Iterable[tuple[_Host, float]]:
    """Suiting hosts, only those that the machine's volumes allow where they name hosts."""
    allowed: frozenset[str] | None = frozenset(demand.pinned_hosts[:1]) if demand.pinned_hosts else None
    for affinity in demand.volume_affinities:
        named = only_hosts(affinity.get("nodeSelectorTerms") or (), HOSTNAME_LABEL)
        if named is not None:
            allowed = named if allowed is None else allowed & named
    # The label kubernetes.io/hostname is the host's name with us; `why_not_volumes` looks at it again.
    return suiting.values() if allowed is None else [suiting[name] for name in allowed if name in suiting]


def _is_wanted(demand: Demand, facts: Facts) -> bool:
    """Whether node selector and node affinity allow a host."""
    if any(facts.labels.get(key) != value for key, value in demand.node_selector.items()):
        return False
    required = (demand.affinity.get("nodeAffinity") or {}).get(REQUIRED)
    return not required or matches_terms(required.get("nodeSelectorTerms") or (), facts.name, facts.labels)


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, frozenset) else str(value)


class _Wishes:
    """The neighbourhood that one machine asks for, counted once for a choice."""

    def __init__(self, book: Book, demand: Demand) -> None:
        wishes = demand.wishes
        self._averse = book.averse(demand)
        self._near = [(term, book.by_place(term), self._is_first(book, term, demand)) for term in wishes.near]
        self._apart = [(term, book.by_place(term)) for term in wishes.apart]
        self._preferred = [(weight, term, book.by_place(term)) for weight, term in wishes.preferred]
        self._spreads = [self._counted(book, spread, demand) for spread in wishes.spreads]

    @staticmethod
    def _is_first(book: Book, term: Term, demand: Demand) -> bool:
        """The first of a group that wants to be together may go anywhere: nobody of it lives yet."""
        return not book.by_place(term) and term.matches(demand.namespace, demand.labels)

    @staticmethod
    def _counted(book: Book, spread: Spread, demand: Demand) -> tuple[Spread, Counter[str], int, int]:
        counts = book.spread_counts(spread, demand)
        least = min(counts.values(), default=0) if len(counts) >= spread.min_domains else 0
        return spread, counts, least, int(spread.term.matches(demand.namespace, demand.labels))

    def why_not(self, host: Facts) -> str:
        """Why the neighbourhood keeps the machine off a host; "" if it does not."""
        for key, places in self._averse.items():
            if host.labels.get(key) in places:
                return f"a machine there wants to be apart from it ({key})"
        for term, counts, is_first in self._near:
            place = host.labels.get(term.key)
            if place is None or (not counts.get(place) and not is_first):
                return f"no machine that it must be near lives there ({term.key})"
        for term, counts in self._apart:
            if counts.get(host.labels.get(term.key, "")):
                return f"a machine that it must be apart from lives there ({term.key})"
        for spread, counts, least, own in self._spreads:
            if not spread.hard:
                continue
            place = host.labels.get(spread.term.key)
            if place is None:
                return f"host has no label {spread.term.key}, over which machines are spread"
            skew = counts.get(place, 0) + own - least
            if skew > spread.max_skew:
                return f"spreading over {spread.term.key} would be uneven by {skew}, {spread.max_skew} is allowed"
        return ""

    def liking(self, host: Facts) -> float:
        """Weights of the preferred neighbours there, less what an uneven spread costs."""
        liked = 0.0
        for weight, term, counts in self._preferred:
            liked += weight * min(1, counts.get(host.labels.get(term.key, ""), 0))
        for spread, counts, least, _ in self._spreads:
            if not spread.hard:
                liked -= counts.get(host.labels.get(spread.term.key, ""), 0) - least
        return liked


def place(demand: Demand, hosts: Iterable[Object], used: dict[str, Use]) -> Placement:
    """One choice among Node objects without a book; `used` by host name."""
    book = Book()
    for node in hosts:
        book.put_host(node)
    for name, use in used.items():
        book.put_machine(name, use, Neighbour(name, "", {}))
    return book.place(demand)

"""Keeps placement's book true: every change of a Node or an instance is entered as it is heard.

Made by `instance`, which enters its own decisions too (`assume`), since the informer tells of them only later. A
machine that migrates takes room on both hosts. Works by listeners of informers, on the event loop, without I/O.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from stead.client.informer import Informer
from stead.controllers.conditions import is_deleting, spec_of, status_of
from stead.controllers.machine_demand import use_from
from stead.controllers.machine_status import is_final
from stead.controllers.placement import Use
from stead.controllers.placement_book import Book
from stead.controllers.placement_terms import NamespaceFinder, Neighbour, Term, labels_as_pod, wishes_from

Object = dict[str, Any]


class Residents:
    """See the module's prose."""

    def __init__(self, vmis: Informer, nodes: Informer, find_namespaces: NamespaceFinder) -> None:
        self.book = Book()
        self._find_namespaces = find_namespaces
        self._told: dict[str, object] = {}
        #: by uid: generation and labels, and what follows from them, so as not to read the spec again
        self._known: dict[str, tuple[object, Use, tuple[Term, ...], dict[str, str]]] = {}
        self._entered: dict[str, tuple[object, ...]] = {}
        self._assumed: set[str] = set()
        self._waiting: dict[str, str] = {}
        self._classes: Counter[str] = Counter()
        nodes.add_listener(self._heard_node)
        vmis.add_listener(self._heard_machine)

    def is_assumed(self, uid: str) -> bool:
        """Whether the machine was placed a moment ago, and the informer has not told yet."""
        return uid in self._assumed

    def assume(self, vmi: Object, host: str) -> None:
        """The machine was bound to a host just now."""
        self._assumed.add(vmi["metadata"]["uid"])
        self._enter(vmi, (host,))

    def matters(self, node: Object) -> bool:
        """Whether something that placement asks for changed on this host since this was last asked."""
        name = node["metadata"]["name"]
        facts = self.book.facts(name)
        if facts is not None and self._told.get(name) is facts:
            return False
        self._told[name] = facts
        return True

    def highest_waiting(self, values: dict[str, int]) -> int | None:
        """The highest priority among machines without a host; `values` by class, "" for no class. None = nobody."""
        return max((values.get(name, 0) for name in self._classes), default=None)

    def reserve(self, key: str, host: str, vmi: Object) -> None:
        """Keep room for a machine for the time of one decision; `book.drop_machine(key)` gives it back."""
        _, use, apart, labels = self._facts(vmi)
        self.book.put_machine(key, use, Neighbour(host, vmi["metadata"].get("namespace", ""), labels, apart))

    # listeners ---------------------------------------------------------------------------------------------------

    def _heard_node(self, old: Object | None, new: Object | None) -> None:
        if new is not None:
            self.book.put_host(new)
        elif old is not None:
            self.book.drop_host(old["metadata"]["name"])

    def _heard_machine(self, old: Object | None, new: Object | None) -> None:
        if old is not None and (new is None or new["metadata"]["uid"] != old["metadata"]["uid"]):
            self._forget(old["metadata"]["uid"])
        if new is None:
            return
        uid, hosts = new["metadata"]["uid"], hosts_of(new)
        self._note_waiting(uid, new, bool(hosts))
        if hosts or is_final(new) or is_deleting(new):
            self._assumed.discard(uid)
        if uid not in self._assumed:
            self._enter(new, hosts)

    def _note_waiting(self, uid: str, vmi: Object | None, placed: bool) -> None:
        before = self._waiting.pop(uid, None)
        if before is not None:
            self._classes[before] -= 1
            if not self._classes[before]:
                del self._classes[before]
        if vmi is not None and not placed and not is_deleting(vmi) and not is_final(vmi):
            name = str(spec_of(vmi).get("priorityClassName") or "")
            self._waiting[uid] = name
            self._classes[name] += 1

    def _forget(self, uid: str) -> None:
        self._note_waiting(uid, None, placed=False)
        self._assumed.discard(uid)
        self._known.pop(uid, None)
        entered = self._entered.pop(uid, None)
        if entered is not None:
            for at in range(len(entered) - 1):
                self.book.drop_machine(_key(uid, at))

    def _enter(self, vmi: Object, hosts: tuple[str, ...]) -> None:
        """The machine lives on those hosts, and on no others."""
        uid = vmi["metadata"]["uid"]
        if not hosts and uid not in self._entered:
            return
        edition, use, apart, labels = self._facts(vmi)
        entered = (edition, *hosts)
        before = self._entered.get(uid, (None,))
        if before == entered:
            return
        for at in range(len(hosts), len(before) - 1):
            self.book.drop_machine(_key(uid, at))
        for at, host in enumerate(hosts):
            found = Neighbour(host, vmi["metadata"].get("namespace", ""), labels, apart)
            self.book.put_machine(_key(uid, at), use, found)
        self._entered[uid] = entered
        if not hosts:
            del self._entered[uid]

    def _facts(self, vmi: Object) -> tuple[object, Use, tuple[Term, ...], dict[str, str]]:
        metadata = vmi["metadata"]
        edition = (metadata.get("generation"), metadata.get("labels"))
        known = self._known.get(metadata["uid"])
        if known is None or known[0] != edition:
            apart = wishes_from(vmi, self._find_namespaces).apart
            known = self._known[metadata["uid"]] = (edition, use_from(vmi), apart, labels_as_pod(vmi))
        return known


def hosts_of(vmi: Object) -> tuple[str, ...]:
    """Where an instance takes room: its host, and the one that it is moving to."""
    if is_final(vmi):
        return ()
    status = status_of(vmi)
    found = [str(status.get("nodeName") or "")]
    moving = status.get("migrationState") or {}
    if moving.get("targetNode") and not moving.get("completed") and not moving.get("failed"):
        found.append(str(moving["targetNode"]))
    return tuple(dict.fromkeys(host for host in found if host))


def _key(uid: str, at: int) -> str:
    return uid if at == 0 else f"{uid}@{at}"

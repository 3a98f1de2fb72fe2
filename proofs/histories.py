"""Whether a history of one key could be that of one copy that does one thing at a time (linearizability). Pure.

The search is Wing and Gong's with Lowe's memory of (what is placed, state): operations are placed in an order that
respects who had ended before whom, undoing choices that lead nowhere. An operation without an answer may have taken
effect at any moment after its call, or never. Values are unique to their write, so a state is the value, or None for
absent; `revisions` says which value a resourceVersion stands for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

#: what `kind` may be. `stale` is an update that was refused since the object had changed; `exists` a refused create.
READ, CREATE, UPDATE, DELETE, STALE, EXISTS = "read", "create", "update", "delete", "stale", "exists"


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One call on one key. `value` is what was written or read (None: absent); `expected` the value that an update
    replaces; `end` infinity = no answer came. An answer of "not found" is a read of None."""

    client: int
    key: str
    kind: str
    begin: float
    end: float = math.inf
    value: str | None = None
    expected: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether nobody knows if it took effect."""
        return self.end == math.inf


class _Refused(Exception):
    pass


def step(state: str | None, operation: Operation) -> str | None:
    """The state after an operation. Raises `_Refused` if it could not have had its answer in this state."""
    kind = operation.kind
    if kind == READ and state == operation.value:
        return state
    if kind == CREATE and state is None:
        return operation.value
    if kind == UPDATE and state is not None and state == operation.expected:
        return operation.value
    if kind == DELETE and state is not None:
        return None
    if kind == STALE and state is not None and state != operation.expected:
        return state
    if kind == EXISTS and state is not None:
        return state
    raise _Refused


def is_linearizable(operations: Iterable[Operation]) -> bool:
    """Whether the operations of one key, which is absent at first, have an order that explains all answers."""
    ordered = sorted(operations, key=lambda each: each.begin)
    required = sum(1 << index for index, each in enumerate(ordered) if not each.is_open)
    seen: set[tuple[int, str | None]] = set()
    stack: list[tuple[int, str | None]] = [(0, None)]
    while stack:
        placed, state = stack.pop()
        if placed & required == required:
            return True
        for index in _next(ordered, placed):
            try:
                after = step(state, ordered[index])
            except _Refused:
                continue
            found = (placed | 1 << index, after)
            if found not in seen:
                seen.add(found)
                stack.append(found)
    return False


def _next(ordered: list[Operation], placed: int) -> list[int]:
    """Those that may come next: nothing that is not placed had ended before they began. The search takes from the end:
    first what ended first, and last of all those without an answer, which need not have happened."""
    free: list[int] = []
    first_end = math.inf
    index = _lowest_unplaced(placed)
    while index < len(ordered):
        operation = ordered[index]
        if operation.begin > first_end:
            break
        if not placed >> index & 1:
            free.append(index)
            first_end = min(first_end, operation.end)
        index += 1
    return sorted(free, key=lambda each: (not ordered[each].is_open, -ordered[each].end))


def _lowest_unplaced(placed: int) -> int:
    return ((placed + 1) & ~placed).bit_length() - 1


def broken_keys(operations: Iterable[Operation]) -> list[str]:
    """Keys whose history no single copy could have given."""
    keys: dict[str, list[Operation]] = {}
    for operation in operations:
        keys.setdefault(operation.key, []).append(operation)
    return sorted(key for key, found in keys.items() if not is_linearizable(found))


def broken_order(revisions: Iterable[tuple[float, float, int]]) -> list[str]:
    """Writes as (begin, end, revision): one that ended before another began must have the smaller revision."""
    found = sorted(revisions, key=lambda each: each[2])
    faults = []
    latest_begin = -math.inf
    for begin, end, revision in found:
        if end < latest_begin:
            faults.append(f"revision {revision} was answered before one that has a smaller revision had begun")
        latest_begin = max(latest_begin, begin)
    return faults


class Seen(msgspec.Struct, frozen=True):
    """One event of a watch."""

    type: str
    key: str
    revision: int
    value: str


def broken_events(events: list[Seen], acknowledged: Mapping[int, tuple[str, str | None]]) -> list[str]:
    """What a watch (resumed, from an empty collection) told wrongly: order, doubles, types, or writes it left out.

    `acknowledged`: revision → (key, value written or None for a delete).
    """
    faults = []
    values: dict[str, str] = {}
    last = 0
    told: dict[int, tuple[str, str | None]] = {}
    for event in events:
        if event.revision <= last:
            faults.append(f"event {event.revision} came after {last}")
        last = max(last, event.revision)
        if (event.key in values) != (event.type != "ADDED"):
            faults.append(f"{event.type} of {event.key} at {event.revision}, which had {values.get(event.key)}")
        if event.type == "DELETED":
            values.pop(event.key, None)
        else:
            values[event.key] = event.value
        told[event.revision] = (event.key, None if event.type == "DELETED" else event.value)
    for revision, write in acknowledged.items():
        if told.get(revision) != write:
            faults.append(f"{write} was acknowledged at {revision}; the watch told {told.get(revision)}")
    return faults

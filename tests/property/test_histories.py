"""The checker of histories: right histories pass, wrong ones do not, and it agrees with trying every order."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stead.cli import prove

histories: Any = prove.load("histories")
Op = histories.Operation


def op(kind: str, begin: float, end: float = math.inf, value: str | None = None, expected: str | None = None) -> Any:
    return Op(client=0, key="k", kind=kind, begin=begin, end=end, value=value, expected=expected)


RIGHT = {
    "one after the other": [op("create", 0, 1, "a"), op("read", 2, 3, "a"), op("update", 4, 5, "b", "a"),
                            op("delete", 6, 7), op("read", 8, 9)],
    "a read during a write sees either": [op("create", 0, 1, "a"), op("update", 2, 9, "b", "a"), op("read", 3, 4, "b"),
                                          op("read", 5, 6, "b")],
    "a write without an answer took effect late": [op("create", 0, value="a"), op("read", 1, 2),
                                                   op("read", 3, 4, "a")],
    "a write without an answer never happened": [op("create", 0, value="a"), op("read", 1, 2), op("read", 8, 9)],
    "refusals": [op("create", 0, 1, "a"), op("exists", 2, 3), op("update", 4, 5, "b", "a"),
                 op("stale", 6, 7, None, "a")],
}  # fmt: skip
WRONG = {
    "an acknowledged write is lost": [op("create", 0, 1, "a"), op("read", 2, 3)],
    "a stale read": [op("create", 0, 1, "a"), op("update", 2, 3, "b", "a"), op("read", 4, 5, "a")],
    "two updates of one version": [op("create", 0, 1, "a"), op("update", 2, 9, "b", "a"), op("update", 3, 8, "c", "a")],
    "a value that was taken back": [op("create", 0, 1, "a"), op("update", 2, value="b", expected="a"),
                                    op("read", 3, 4, "b"), op("read", 5, 6, "a")],
    "a deleted object comes back": [op("create", 0, 1, "a"), op("delete", 2, 3), op("read", 4, 5, "a")],
    "a conflict without a change": [op("create", 0, 1, "a"), op("stale", 2, 3, None, "a")],
    "a conflict with what is gone": [op("create", 0, 1, "a"), op("delete", 2, 3), op("stale", 4, 5, None, "a")],
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_history_is_accepted(name: str) -> None:
    assert histories.broken_keys(RIGHT[name]) == []


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_history_is_found(name: str) -> None:
    assert histories.broken_keys(WRONG[name]) == ["k"]


VALUES = st.sampled_from([None, "a", "b"])
OPERATIONS = st.builds(
    lambda kind, begin, length, value, expected: op(
        kind, begin, begin + length, None if kind in ("delete", "stale", "exists") else value or "a", expected or "a"
    ),
    st.sampled_from(["read", "create", "update", "delete", "stale", "exists"]),
    st.integers(0, 8), st.sampled_from([0.5, 1.5, 4.5, math.inf]), VALUES, VALUES,
)  # fmt: skip


def _by_trying(operations: list[Any]) -> bool:
    """Every choice of unanswered operations, in every order that respects time."""
    needed = [each for each in operations if not each.is_open]
    loose = [each for each in operations if each.is_open]
    for size in range(len(loose) + 1):
        for chosen in itertools.combinations(loose, size):
            for order in itertools.permutations([*needed, *chosen]):
                if any(b.end < a.begin for a, b in itertools.combinations(order, 2)):
                    continue
                state = None
                try:
                    for each in order:
                        state = histories.step(state, each)
                except Exception:
                    continue
                return True
    return False


@settings(max_examples=200)
@given(st.lists(OPERATIONS, max_size=5))
def test_it_agrees_with_trying_every_order(operations: list[Any]) -> None:
    assert histories.is_linearizable(operations) == _by_trying(operations)


def test_revisions_follow_time() -> None:
    assert histories.broken_order([(0, 1, 5), (0.5, 3, 7), (2, 4, 6)]) == []
    assert histories.broken_order([(0, 1, 6), (2, 3, 5)])


def _seen(kind: str, revision: int, value: str = "x") -> Any:
    return histories.Seen(kind, "k", revision, value)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [_seen("ADDED", 1), _seen("ADDED", 2)],
        [_seen("ADDED", 1), _seen("MODIFIED", 2), _seen("MODIFIED", 2)],
        [_seen("MODIFIED", 1)],
        [_seen("ADDED", 1, "y")],
    ],
)
def test_what_a_watch_tells_wrongly_is_found(events: list[Any]) -> None:
    assert histories.broken_events([_seen("ADDED", 1), _seen("DELETED", 3)], {1: ("k", "x"), 3: ("k", None)}) == []
    assert histories.broken_events(events, {1: ("k", "x")})

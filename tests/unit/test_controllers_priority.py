"""Who is placed first when hosts are short, and what is said of a class that is not there."""

from __future__ import annotations

from typing import Any

from stead.controllers.instance import ahead_of, decide_class


def waiting(name: str, made: str = "", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "creationTimestamp": made}, "spec": spec}


def test_higher_priorities_go_first_the_oldest_before_the_younger() -> None:
    low = waiting("low")
    old, young = (waiting(n, m, priorityClassName="high") for n, m in (("old", "1"), ("young", "2")))
    top = waiting("top", "3", priorityClassName="top")
    values = {"": 0, "high": 5, "top": 9}
    assert [v["metadata"]["name"] for v in ahead_of(low, [young, top, low, old], values)] == ["top", "old", "young"]
    assert ahead_of(top, [young, low, old, top], values) == []


def test_a_missing_class_holds_the_machine_back_and_names_it() -> None:
    step = decide_class(waiting("a", priorityClassName="gone"), {"": 0})
    assert step is not None
    assert step.conditions[0]["message"].endswith("is forbidden: no PriorityClass with name gone was found")
    assert decide_class(waiting("a"), {"": 0}) is None

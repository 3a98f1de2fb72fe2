"""What the doctor says of libvirt's machines: those of another Stead are foreign, as those of nobody we know."""

from __future__ import annotations

import pytest

from stead.config import Settings
from stead.doctor import hypervisor

#: what `virsh metadata` prints: our element without its namespace
MARKS = {
    "default_web": '<machine name="web">{"metadata":{"instance":"stead"}}</machine>',
    "default_old": '<machine name="old">{"uid":"1"}</machine>',
    "two_default_web": '<machine name="web">{"metadata":{"instance":"two"}}</machine>',
    "theirs": "error: metadata not found: Requested metadata element is not present",
}


@pytest.mark.parametrize(
    ("instance", "told"),
    [("stead", "2, left alone: theirs, two_default_web"), ("two", "3, left alone: default_old, default_web, theirs")],
)
def test_machines_of_another_stead_are_foreign(monkeypatch: pytest.MonkeyPatch, instance: str, told: str) -> None:
    def output_of(*words: str) -> tuple[int, str]:
        return (0, "\n".join(MARKS)) if "list" in words else (0, MARKS[words[-2]])

    monkeypatch.setattr(hypervisor, "output_of", output_of)
    found = hypervisor.foreign_machines(Settings(instance=instance))
    assert (found.level, found.evidence) == ("pass", told)

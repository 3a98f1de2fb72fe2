"""Tables align, ages and sizes read as kubectl's, and programs get whole objects."""

from __future__ import annotations

import datetime

import pytest
import yaml

from stead.cli import output


def test_a_table_is_aligned_and_names_missing_values() -> None:
    text = output.table(["NAME", "STATUS"], [["web01", "Running"], ["a-long-name", None]])
    assert text.splitlines() == ["NAME          STATUS", "web01         Running", "a-long-name   <none>"]


def test_a_cell_from_outside_cannot_break_the_table() -> None:
    assert len(output.table(["NAME"], [["a\nb\tc"]]).splitlines()) == 2


@pytest.mark.parametrize(("seconds", "text"), [(5, "5s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d")])
def test_ages_are_short(seconds: int, text: str) -> None:
    now = datetime.datetime(2026, 1, 5, tzinfo=datetime.UTC)
    since = (now - datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert output.age(since, now) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1024, "1 KiB"), (1_610_612_736, "1.5 GiB")])
def test_sizes_have_binary_units(count: int, text: str) -> None:
    assert output.size(count) == text


def test_programs_get_a_list_or_the_object_itself(capsys: pytest.CaptureFixture[str]) -> None:
    vm = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "a"}}
    output.print_objects([vm], "yaml", single=True)
    assert yaml.safe_load(capsys.readouterr().out) == vm
    output.print_objects([vm], "json")
    assert '"items"' in capsys.readouterr().out
    output.print_objects([vm], "name")
    assert capsys.readouterr().out == "virtualmachine/a\n"

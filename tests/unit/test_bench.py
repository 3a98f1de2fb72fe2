"""`stead bench`: its arithmetic, the object for programs, the list, and that refusals are sentences."""

from __future__ import annotations

import csv
import json
import os
import types
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stead.cli import bench

figures: Any = bench.load("figures")


def test_percentiles_interpolate_between_ranks() -> None:
    assert figures.percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert figures.percentile([0.0, 10.0], 95) == 9.5
    with pytest.raises(ValueError, match="no samples"):
        figures.percentile([], 50)


def test_the_interval_of_a_ratio_contains_it_and_is_the_same_each_time() -> None:
    ours, rival = [1.1, 1.2, 1.3, 1.2, 1.1], [1.0, 1.0, 1.1, 0.9, 1.0]
    low, high = figures.interval(ours, rival, 50)
    assert low <= 1.2 <= high
    assert figures.interval(ours, rival, 50) == (low, high)


@pytest.mark.parametrize(
    ("given", "met"),
    [
        ({"ours": 1.1, "rival": 1.0, "target": 1.2}, True),
        ({"ours": 1.3, "rival": 1.0, "target": 1.2}, False),
        ({"ours": 0.9, "rival": 1.0, "target": 0.95, "bound": ">="}, False),
        ({"ours": 120.0, "target": 150.0, "judged": "ours"}, True),
        ({"ours": 120.0, "target": 150.0}, None),
        ({"ours": 1.0, "rival": 2.0}, None),
    ],
)
def test_a_figure_knows_whether_its_target_is_met(given: dict[str, Any], met: bool | None) -> None:
    assert figures.Figure(unit="s", **given).met is met


def test_a_result_is_one_object_beside_its_raw_samples(tmp_path: Path) -> None:
    result = figures.Result(
        name="start",
        n=2,
        figures={"p50": figures.Figure(ours=2.0, rival=1.0, unit="s", target=1.1)},
        rows=[{"ours_s": 2.0}, {"ours_s": 2.0, "load": 1.5}],
    )
    result.write(tmp_path)
    found = json.loads(json.dumps(result.as_json()))
    assert set(found) == {"name", "machine", "n", "figures", "raw"}
    assert found["figures"] == {"p50": {"ours": 2.0, "rival": 1.0, "ratio": 2.0, "unit": "s", "target": 1.1}}
    with open(found["raw"], encoding="utf-8") as handle:
        assert [row["ours_s"] for row in csv.DictReader(handle)] == ["2.0", "2.0"]
    assert json.loads(Path(found["raw"]).with_suffix(".json").read_text()) == found
    assert result.as_rows()[0][:7] == ["p50", "2", "1", "2", "s", "<= 1.1", "MISSED"]


def test_every_benchmark_of_the_list_can_be_loaded() -> None:
    package = bench.load()
    assert {"start", "footprint", "import"} <= set(package.BENCHMARKS)
    for entry in package.BENCHMARKS.values():
        assert isinstance(bench.load(entry.module), types.ModuleType)
        assert callable(bench.load(entry.module).run)


def test_the_list_names_them_for_people_and_programs() -> None:
    text = CliRunner().invoke(bench.bench, ["list"])
    found = CliRunner().invoke(bench.bench, ["list", "--json"])
    names = [entry["name"] for entry in json.loads(found.output)]
    assert text.exit_code == found.exit_code == 0
    assert "start" in names
    assert all(name in text.output for name in names)


def test_an_unknown_benchmark_is_refused_with_those_there_are() -> None:
    result = CliRunner().invoke(bench.bench, ["speed"])
    assert result.exit_code == 1
    assert "no benchmark 'speed'; there are: start, " in result.output


def test_one_that_needs_root_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = CliRunner().invoke(bench.bench, ["start"])
    assert result.exit_code == 1
    assert "stead bench start needs root" in result.output


def test_every_figure_of_the_specification_names_a_benchmark() -> None:
    """The table in docs/SPECIFICATION.md and the list agree."""
    text = (Path(__file__).parents[2] / "docs" / "SPECIFICATION.md").read_text(encoding="utf-8")
    for name in bench.load().BENCHMARKS:
        assert f"`stead bench {name}`" in text

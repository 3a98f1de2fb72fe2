"""What `stead migrate --watch` shows of a machine on its way."""

from __future__ import annotations

from stead.agent.metrics import machine_samples
from stead.cli.migrate import progress_line

COUNTERS = {
    "migration.total_bytes": 400.0 * (1 << 20),
    "migration.remaining_bytes": 100.0 * (1 << 20),
    "migration.dirty_bytes_per_second": 3.5 * (1 << 20),
    "migration.expected_downtime_ms": 42.0,
}


def test_the_bar_says_what_is_left_and_what_to_expect() -> None:
    line = progress_line(COUNTERS)
    assert "75 %" in line
    assert "100 MiB left" in line
    assert "3.5 MiB/s" in line
    assert "42 ms" in line
    assert line.count("#") == 18


def test_nothing_is_made_up_while_nothing_is_known() -> None:
    assert progress_line({}) == "Running"


def test_the_same_figures_are_scraped_under_kubevirts_names() -> None:
    vmi = {"metadata": {"namespace": "a", "name": "b", "uid": "u"}, "spec": {"domain": {}}}
    samples = {name: value for name, _, value in machine_samples(vmi, "h", COUNTERS)}
    assert samples["kubevirt_vmi_migration_data_remaining_bytes"] == 100.0 * (1 << 20)
    assert samples["kubevirt_vmi_migration_dirty_memory_rate_bytes"] == 3.5 * (1 << 20)

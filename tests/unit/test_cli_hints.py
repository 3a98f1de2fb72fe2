"""What commands say beside a bare refusal: what to do about it."""

from __future__ import annotations

import click
import pytest

from stead.cli.copies import _judge_restore
from stead.cli.joining import is_loopback
from stead.kinds.snapshot import RUNS_STILL


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://127.0.0.1:6443", True), ("https://[::1]:6443", True), ("https://localhost", True),
        ("https://192.0.2.1:6443", False), ("https://stead.example.org", False), ("nonsense", False),
    ],
)  # fmt: skip
def test_a_url_that_no_other_host_reaches_is_known(url: str, expected: bool) -> None:
    assert is_loopback(url) is expected


def test_a_restore_of_a_running_machine_says_what_to_do() -> None:
    failed = {"type": "Failure", "status": "True", "reason": RUNS_STILL}
    with pytest.raises(click.ClickException, match="--while-running StopTarget"):
        _judge_restore({"metadata": {"name": "r"}, "status": {"conditions": [failed]}})

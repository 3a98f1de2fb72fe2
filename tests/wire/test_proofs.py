"""`stead prove` at a small N: what the dated pages in docs/proofs show at a large one; and its command line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stead.cli import prove

report: Any = prove.load("report")
power: Any = prove.load("power")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "n"), [("linearizability", 2), ("watch", 1500), ("fuzz", 300), ("etcd", 3)])
async def test_the_proof_holds_and_its_control_is_found_out(name: str, n: int, tmp_path: Path) -> None:
    proof = prove.load(prove.load().PROOFS[name].module)
    outcome = await proof.run(report.Request(n=n, seed=11))
    assert outcome.failures == []
    page = outcome.write(tmp_path)
    assert f"stead prove {name} --n {n} --seed 11" in page.read_text()
    assert "PASSED" in page.read_text()


def test_a_failure_is_said_and_kept() -> None:
    outcome = report.Outcome(name="x", n=1, seed=1, facts={}, failures=["a write is lost"])
    assert not outcome.passed
    assert "FAILED (0 s)\n\n- a write is lost\n" in outcome.as_page("2026-01-02")


def test_the_list_names_them_for_people_and_programs() -> None:
    text = CliRunner().invoke(prove.prove, ["list"])
    found = CliRunner().invoke(prove.prove, ["list", "--json"])
    assert text.exit_code == found.exit_code == 0
    assert {"name": "linearizability", "n": 300}.items() <= json.loads(found.output)[0].items()
    assert all(entry["name"] in text.output for entry in json.loads(found.output))


def test_an_unknown_proof_is_refused_with_those_there_are() -> None:
    result = CliRunner().invoke(prove.prove, ["nothing"])
    assert result.exit_code == 1
    assert "no proof 'nothing'; there are: linearizability" in result.output


def test_power_loss_leaves_what_was_synced_and_perhaps_pages_of_the_rest(tmp_path: Path) -> None:
    store, folder = tmp_path / "store.db", tmp_path / "durable"
    folder.mkdir()
    store.write_bytes(b"n" * 8192)
    (folder / "store.db").write_bytes(b"o" * 4096)
    left = set()
    for seed in range(40):
        store.write_bytes(b"n" * 8192)
        power.cut(store, folder, random.Random(seed))
        left.add(store.read_bytes())
    assert b"o" * 4096 in left
    assert len(left) > 2
    with pytest.raises(OSError, match="did not use the stand-in"):
        power.cut(store, tmp_path / "empty", random.Random(1))

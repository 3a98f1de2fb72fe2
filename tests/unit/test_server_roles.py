"""KubeVirt's and CDI's default roles, cell by cell: each resource's verbs in each role, no more and no fewer.

The tables are facts: `data/kubevirt_roles.tsv` from KubeVirt's operator (August 2026), `data/cdi_roles.tsv` from CDI's.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from stead.server.roles import default_bindings, default_roles

Object = dict[str, Any]
READ = {"get", "list", "watch"}
EDIT = READ | {"create", "update", "patch", "delete"}
WORDS = {"-": set(), "read": READ, "all-but-deletecollection": EDIT, "all": EDIT | {"deletecollection"}}
OURS = "subresources.stead.io"


def table(name: str) -> list[dict[str, str]]:
    with (Path(__file__).parent.parent / "data" / name).open() as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def cells(rows: list[dict[str, str]]) -> dict[tuple[str, str, str], set[str]]:
    """(role, group, resource) → verbs."""
    return {
        (role, row["group"], row["resource"]): WORDS.get(told) or set(told.replace("-", "").split(",")) - {""}
        for row in rows
        for role, told in row.items()
        if role not in ("group", "resource")
    }


def given() -> dict[tuple[str, str, str], set[str]]:
    found: dict[tuple[str, str, str], set[str]] = {}
    for role in default_roles():
        for rule in role["rules"]:
            for group in rule.get("apiGroups") or ():
                for resource in rule["resources"]:
                    found.setdefault((role["metadata"]["name"], group, resource), set()).update(rule["verbs"])
    return found


@pytest.mark.parametrize("name", ["kubevirt_roles.tsv", "cdi_roles.tsv"])
def test_every_cell_is_as_upstream_has_it(name: str) -> None:
    wanted, have = cells(table(name)), given()
    wrong = {cell: have.get(cell, set()) for cell, verbs in wanted.items() if have.get(cell, set()) != verbs}
    assert not wrong, {cell: (found, wanted[cell]) for cell, found in wrong.items()}
    assert len(wanted) >= 44


@pytest.mark.parametrize("name", ["kubevirt_roles.tsv", "cdi_roles.tsv"])
def test_nothing_else_is_given(name: str) -> None:
    wanted = cells(table(name))
    roles = {role for role, _, _ in wanted}
    more = [cell for cell in given() if cell[0] in roles and cell[1] != OURS and not wanted.get(cell)]
    assert more == []


def test_they_are_parts_of_kubernetes_roles_and_some_are_everybodys() -> None:
    aggregated = {
        role["metadata"]["name"]: [
            label.rpartition("-to-")[2] for label in role["metadata"]["labels"] if "-to-" in label
        ]
        for role in default_roles()
    }
    for family in ("kubevirt.io", "cdi.kubevirt.io"):
        for name in ("admin", "edit", "view"):
            assert aggregated[f"{family}:{name}"] == [name]
    assert aggregated["kubevirt.io:migrate"] == [], "moving machines is given on purpose"
    everybody = {
        binding["roleRef"]["name"] for binding in default_bindings() if "authenticated" in str(binding["subjects"])
    }
    wanted = {"kubevirt.io:default", "instancetype.kubevirt.io:view", "cdi.kubevirt.io:config-reader"}
    assert wanted <= everybody

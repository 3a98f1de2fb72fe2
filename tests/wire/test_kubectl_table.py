"""A table of kubectl invocations with what each prints and how it ends, by the oldest and the newest kubectl at hand.

The table (`tests/data/kubectl_table.txt`, which says its form) runs in order on one server, in one namespace a program.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import msgspec
import pytest
import yaml
from tests.api_server import running_server
from tests.client_programs import kubectls
from tests.kubectl_program import Program, Ran, kubeconfig_in

DATA = Path(__file__).parent.parent / "data"
#: the issue asks for more than this
LEAST = 150


class Row(msgspec.Struct):
    """One invocation and what is expected of it."""

    run: str
    exit: str = "0"
    out: str = ""
    err: str = ""
    stdin: str = ""
    editor: str = ""
    since: str = "0"


def rows() -> list[Row]:
    """The table. Raises AttributeError for a line that names no column."""
    found: list[Row] = []
    for line in (DATA / "kubectl_table.txt").read_text().splitlines():
        if line.startswith("$ "):
            found.append(Row(line[2:]))
        elif line.startswith("  "):
            column, value = line.strip().split(" ", 1)
            assert column in Row.__struct_fields__, line
            setattr(found[-1], column, value)
    return found


def test_the_table_is_long_enough() -> None:
    assert len(rows()) > LEAST


@pytest.mark.parametrize("path", kubectls(), ids=lambda path: Path(path).name)
async def test_every_invocation_prints_and_ends_as_expected(path: str, tmp_path: Path) -> None:
    for name, text in yaml.safe_load((DATA / "kubectl_table_files.yaml").read_text()).items():
        (tmp_path / name).write_text(text)
    async with running_server() as server:
        kubectl = Program(path, server.kubeconfig, tmp_path)
        namespace = f"table-{kubectl.version}"
        await kubectl.ok(f"create ns {namespace}")
        kubectl.kubeconfig = kubeconfig_in(server.kubeconfig, namespace, tmp_path / "kubeconfig")
        wrong = [miss for row in rows() if int(row.since) <= kubectl.minor and (miss := await missed(kubectl, row))]
    assert not wrong, "\n".join(wrong)


async def missed(kubectl: Program, row: Row) -> str:
    """What a row's command did against expectation, or nothing."""
    namespace = f"table-{kubectl.version}"
    words = [word.replace("{ns}", namespace).replace("{v}", kubectl.version) for word in shlex.split(row.run)]
    stdin = (kubectl.folder / row.stdin).read_bytes() if row.stdin else b""
    ran = await kubectl.run(*words, stdin=stdin, environment={"KUBE_EDITOR": f"sed -i {row.editor}"})
    return "" if agrees(row, ran) else f"$ {row.run}\n  wanted {row.exit} {row.out!r} {row.err!r}\n  got {ran}"


def agrees(row: Row, ran: Ran) -> bool:
    """Whether an outcome is the expected one. The end of the output counts as the end of its last line."""
    ended = row.exit in ("any", str(ran.code))
    return ended and bool(re.search(row.out, ran.out) and re.search(row.err, ran.err))

"""The documentation against the code: names that it cites exist, links lead somewhere, generated pages are current."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "stead"
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
#: `path/below/src/stead.py:name` or `….py:Class.method`
CITED = re.compile(r"`([\w/]+\.py):([\w.]+)`")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


@cache
def _names(path: Path) -> frozenset[str]:
    """Functions, classes, methods, constants and imported names of a module."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found.add(node.name)
            found |= {
                f"{node.name}.{part.name}"
                for part in node.body
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
            }
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return frozenset(found)


def _anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    plain = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in HEADING.findall(text))
    return {heading.replace(" ", "-") for heading in plain}


def _of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_of)
def test_names_that_a_page_cites_exist(page: Path) -> None:
    missing = []
    for file, name in CITED.findall(page.read_text(encoding="utf-8")):
        path = SOURCE / file
        if not path.is_file() or name not in _names(path):
            missing.append(f"{file}:{name}")
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for target in LINK.findall(text):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file) if file else page
        if not found.exists() or (anchor and anchor not in _anchors(found)):
            broken.append(target)
    assert not broken


def test_the_flow_names_every_room() -> None:
    cited = {file.split("/")[0] for file, _ in CITED.findall((ROOT / "docs" / "flow.md").read_text(encoding="utf-8"))}
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")} - {"doctor", "cli"}
    assert rooms <= cited


@pytest.mark.parametrize("name", ["settings", "cli", "kinds"])
def test_generated_pages_are_current(name: str) -> None:
    made = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), name],
        capture_output=True, text=True, timeout=60, check=True, env={"PYTHONPATH": str(SOURCE.parent), "COLUMNS": "80"},
    ).stdout  # fmt: skip
    page = ROOT / "docs" / "reference" / f"{name}.md"
    assert page.read_text(encoding="utf-8") == made, f"run: python docs/generate.py --write {name}"

"""No argument of `stead create` ends in anything but manifests or one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stead.cli.virt_install import manifest, trees
from stead.cli.virt_install.options import ACCEPTED, BY_FLAG, REFUSED
from stead.cli.virt_install.plan import Facts, Line, Pool, Tree
from stead.cli.virt_install.suboptions import Given, Refusal

BASE = {"--name": ("a",), "--memory": ("512",), "--disk": ("size=1",), "--import": ("",)}
ODD = (
    "on", "off", "none", "", "1", "0", "-1", "99999999999999999999", "/a/b", "/pool/x.img", "http://[", "https://x/y",
    "default", "host-passthrough", "+vmx", "\0", "\n", "²", "٣", "'", '"', "a" * 300, "br0", "virtio", "utc",
    "1e9", "nan",
)  # fmt: skip
WORDS = st.one_of(st.text(max_size=40), st.sampled_from(ODD))
NAMES = sorted({name for option in ACCEPTED for name in (*option.known, *option.refused)})
PIECE = st.one_of(WORDS, st.tuples(st.sampled_from(NAMES), WORDS).map("=".join))


def sentence(refusal: Refusal) -> str:
    """The refusal's text, which is one line and not empty."""
    text = str(refusal)
    assert text.strip()
    assert "\n" not in text
    return text


def own_pieces(flag: str) -> st.SearchStrategy[str]:
    """Texts of an option, mostly with its own sub-options."""
    known = sorted(BY_FLAG[flag].known) or ["x"]
    mine = st.tuples(st.sampled_from(known), WORDS).map("=".join)
    return st.lists(st.one_of(mine, mine, PIECE), max_size=4).map(",".join)


@st.composite
def lines(draw: st.DrawFn) -> Line:
    flags = draw(st.lists(st.sampled_from([option.flag for option in ACCEPTED]), max_size=4, unique=True))
    texts: dict[str, tuple[str, ...]] = dict(BASE) if draw(st.booleans()) else {}
    for flag in flags:
        texts[flag] = tuple(draw(st.lists(own_pieces(flag), min_size=1, max_size=2)))
    return Line(texts, no_start=draw(st.booleans()))


def facts(exists: bool | None, text: str) -> Facts:
    values: dict[str, Any] = {
        "pools": (Pool("pool", Path("/pool"), "pool"),), "kvm": exists, "exists": lambda _path: exists,
        "inspect": lambda _path: ("raw", 5 << 20), "read_text": lambda _name: text, "password": lambda: "p",
        "tree": Tree("http://x", "k", "i", "fedora", text),
    }  # fmt: skip
    return Facts(**values)


@settings(max_examples=600, deadline=None)
@given(lines(), st.sampled_from([True, False, None]), st.one_of(WORDS, st.text(max_size=200)))
def test_any_line_is_a_machine_or_one_sentence(line: Line, exists: bool | None, text: str) -> None:
    try:
        found = manifest.build(line, facts(exists, text))
        manifest.console_of(line)
        manifest.wait_minutes(line)
    except Refusal as refusal:
        sentence(refusal)
        return
    assert all(yaml.safe_load(yaml.safe_dump(item)) == item for item in found.all)
    names = [entry["name"] for entry in found.machine["spec"]["template"]["spec"].get("volumes", [])]
    assert len(names) == len(set(names))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*REFUSED, "--no-such", "", "x"]), WORDS)
def test_what_is_not_offered_is_named(flag: str, text: str) -> None:
    try:
        manifest.build(Line({**BASE, flag: (text,)}), facts(True, ""))
        found = ""
    except Refusal as refusal:
        found = sentence(refusal)
    assert found.startswith(flag)
    assert found


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=60),
    st.one_of(st.text(max_size=300), st.just("[images-x86_64]\nkernel=../../etc/shadow\ninitrd=a")),
)
def test_any_tree_description_is_a_tree_below_its_url_or_none(url: str, text: str) -> None:
    found = trees.from_treeinfo("http://x", text)
    assert found is None or ".." not in found.kernel + found.initrd
    try:
        base = trees.base_url(Given("--location", {"url": url}))
    except Refusal as refusal:
        sentence(refusal)
        return
    assert base.startswith(("http://", "https://"))

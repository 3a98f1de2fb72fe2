"""What goes in and what comes out: the line, the facts about the world, and the plan that the topics fill. Pure.

`Facts` carries the few questions that the shell answers (does a file exist, which pools are there); `Plan` is the one
mutable thing, made and read by `manifest.build` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from stead.cli.virt_install.options import BY_FLAG
from stead.cli.virt_install.suboptions import Given, Refusal, read
from stead.kube import quantity

Object = dict[str, Any]


class Tree(msgspec.Struct, frozen=True):
    """An installer tree: the URL without a final slash, kernel and initrd below it, and the system if it tells."""

    url: str
    kernel: str
    initrd: str
    #: debian, fedora, suse or "" : how the installer is told where it comes from
    family: str = ""
    #: an id of libosinfo, "" when the tree does not tell
    system: str = ""


class Pool(msgspec.Struct, frozen=True):
    """A registered directory and the StorageClass that keeps volumes in it ("" = the default class)."""

    name: str
    path: Path
    storage_class: str


def _no_file(path: str) -> str:
    raise Refusal(f"cannot read {path}: no files here")


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the world looks like; every function may be asked several times and changes nothing."""

    namespace: str = "default"
    pools: tuple[Pool, ...] = ()
    #: whether all schedulable hosts have KVM; None = nobody could be asked
    kvm: bool | None = None
    #: whether a host file exists; None = it cannot be seen from here
    exists: Callable[[Path], bool | None] = lambda _path: None
    #: (format, virtual size in bytes) of an existing disk image; ("", 0) = cannot be told from here
    inspect: Callable[[Path], tuple[str, int]] = lambda _path: ("", 0)
    #: text of a file of the person's own. Raises Refusal.
    read_text: Callable[[str], str] = _no_file
    #: the sentence that says how to make a bridge, "" when this host has it
    bridge_hint: Callable[[str], str] = lambda _name: ""
    password: Callable[[], str] = lambda: ""
    tree: Tree | None = None


class Line(msgspec.Struct, frozen=True):
    """The options as typed: flag → its texts in order. A switch has one empty text."""

    texts: dict[str, tuple[str, ...]] = {}
    #: stay off after creation
    no_start: bool = False

    def has(self, flag: str) -> bool:
        """Whether the option was given."""
        return bool(self.texts.get(flag))

    def text(self, flag: str) -> str:
        """The last text of an option, as typed; "" when absent."""
        return (self.texts.get(flag) or ("",))[-1]

    def last(self, flag: str) -> Given | None:
        """The last use, read; None when absent. Raises Refusal."""
        found = self.texts.get(flag)
        return read(BY_FLAG[flag], found[-1]) if found else None

    def all(self, flag: str) -> list[Given]:
        """Every use, read. Raises Refusal."""
        return [read(BY_FLAG[flag], text) for text in self.texts.get(flag, ())]


class Plan:
    """The machine in the making."""

    def __init__(self, name: str, facts: Facts) -> None:
        self.name = name
        self.facts = facts
        self.domain: Object = {}
        self.devices: Object = {}
        self.spec: Object = {}
        self.disks: list[Object] = []
        self.interfaces: list[Object] = []
        self.networks: list[Object] = []
        self.volumes: list[Object] = []
        self.templates: list[Object] = []
        #: objects made before the machine unless they exist: attachment definitions, volumes that machines share
        self.shared: list[Object] = []
        #: Secrets that belong to the machine
        self.secrets: list[Object] = []
        self.annotations: dict[str, str] = {}
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self.preference: Object | None = None
        self.instancetype: Object | None = None
        #: whether the line gives a number of CPUs and no sockets, cores or threads
        self.has_open_topology = False

    def warn(self, text: str) -> None:
        """Say something on standard error, once."""
        if text and text not in self.warnings:
            self.warnings.append(text)

    def meta(self, name: str) -> Object:
        """Metadata of a namespaced object."""
        return {"name": name, "namespace": self.facts.namespace}


def choice(given: Given, name: str, allowed: tuple[str, ...]) -> str:
    """A sub-option that is one of a few words; "" when absent. Raises Refusal."""
    value = given.get(name)
    if value and value not in allowed:
        raise Refusal(f"{given.flag} {name}={value[:60]} is not offered; {', '.join(allowed)} are")
    return value


def amount(what: str, text: str, *, unit: str) -> str:
    """A size as a quantity: a plain number counts `unit` (Mi or Gi). Raises Refusal."""
    cleaned = text.strip()
    if cleaned.isascii() and cleaned.replace(".", "", 1).isdigit() and len(cleaned) <= 15:
        cleaned += unit
    try:
        size = int(quantity.parse(cleaned))
    except ValueError:
        raise Refusal(f"{what}={text[:40]}: a size is meant, such as 4096 or 4Gi") from None
    if not 2**20 <= size <= 2**60:
        raise Refusal(f"{what}={text[:40]}: a size from 1Mi to 1Ei is meant")
    for suffix, factor in (("Gi", 2**30), ("Mi", 2**20)):
        if size % factor == 0:
            return f"{size // factor}{suffix}"
    return str(size)


def size_of(text: str) -> int:
    """Bytes of a quantity that `amount` made."""
    return int(quantity.parse(text))

"""Writes the reference pages that follow from the code: settings, command line, kinds.

`python docs/generate.py NAME` prints a page, `--write [NAME…]` writes pages. `tests/unit/test_docs.py` checks that they
are current. Needs `src` on PYTHONPATH or Stead installed.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

REFERENCE = Path(__file__).resolve().parent / "reference"
MADE = "<!-- Made by docs/generate.py; do not edit. -->\n\n"


def settings() -> str:
    """Every setting with its default and meaning, from the comments in `config.py`."""
    from stead import config

    source = Path(config.__file__).read_text(encoding="utf-8")
    lines = source.splitlines()
    struct = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "Settings")
    rows = []
    for node in struct.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        comment: list[str] = []
        at = node.lineno - 2
        while lines[at].strip().startswith("#:"):
            comment.insert(0, lines[at].strip().removeprefix("#:").strip())
            at -= 1
        told = " ".join(comment)
        default = ast.unparse(node.value) if node.value else ""
        default = default.removeprefix("Path(").removesuffix(")") if default.startswith("Path(") else default
        rows.append(
            f"| `{node.target.id}` | {_kind(ast.unparse(node.annotation))} | `{_plain(default)}` | {_cell(told)} |"
        )
    return (
        MADE
        + f"""# Settings

From, the later winning: defaults; the TOML file (`--config FILE`, else `$STEAD_CONFIG`, else `{config.DEFAULT_FILE}`);
the environment (`STEAD_` and the name in capitals, lists with commas; not for `pools`). An unknown name is an error
that names it. Settings are read when a process starts: `stead down && stead up --detach`, or `systemctl restart stead`.
Guests go on.

| Setting | Type | Default | Meaning |
|---|---|---|---|
{chr(10).join(rows)}

A pool is a table of its own in the file:

```toml
listen_address = "0.0.0.0"
listen_names = ["stead.example.org"]

[[pools]]
name = "fast"
path = "/srv/fast"
```
"""
    )


def _kind(annotation: str) -> str:
    names = {"str": "text", "int": "number", "Path": "path", "tuple[str, ...]": "list of text"}
    names["tuple[Path, ...]"] = "list of paths"
    return names.get(annotation, "list of pools" if annotation.startswith("tuple[Pool") else annotation)


def _plain(default: str) -> str:
    found = {"()": "[]", "20 * 1024 ** 3": "21474836480"}.get(default, default)
    return found.replace("'", '"').replace("_", "") if found[:1].isdigit() else found.replace("'", '"')


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def cli() -> str:
    """Every command with its help, from click."""
    from stead.cli import main

    parts = [
        MADE
        + """# The command line

`stead COMMAND --help` says the same. Tables are for people; `-o json`, `-o yaml` and `-o name` are for programs.
Colour and progress displays appear on a terminal only.

## Exit codes

| Code | Meaning |
|---|---|
| 0 | done |
| 1 | refused or failed: one sentence on standard error says what and, where it can, what to do |
| 2 | wrong usage: an unknown option, a missing argument, or what `stead create` refuses of a virt-install line |
| 130 | interrupted by Ctrl-C |

`stead status` ends with 1 when Stead is not ready; `stead doctor` with 1 for warnings and 2 for failures; `stead ssh`
with the code of the remote command.

## Which API

The first of: `--kubeconfig FILE`; `$KUBECONFIG`; the administrator's kubeconfig of a Stead on this host, when it can be
read; `~/.kube/config`. Commands under "This host" read the settings instead.
"""
    ]
    root = main.main
    context = click.Context(
        root, info_name="stead", **{**root.context_settings, "terminal_width": 80, "max_content_width": 80}
    )
    parts.append(f"## stead\n\n```\n{root.get_help(context).rstrip()}\n```\n")
    for path, command, inner in _commands(root, context):
        parts.append(f"## {path}\n\n```\n{command.get_help(inner).rstrip()}\n```\n")
    return "\n".join(parts)


def _commands(group: Any, context: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context, terminal_width=80, max_content_width=80)
        yield inner.command_path, command, inner
        if isinstance(command, click.Group):
            yield from _commands(command, inner)


def kinds() -> str:
    """Every served kind, from the register."""
    from stead.kinds import columns, register

    parts = [
        MADE
        + """# Kinds

What the API serves. Fields: `kubectl explain KIND --recursive`, from the same definitions. "Verbs" is given where not
all of create, get, list, watch, update, patch, delete and deletecollection are served. A version in brackets is served
too, and not preferred. Columns in brackets show with `-o wide`.
"""
    ]
    every = {"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
    for group in register.groups():
        members = [r for r in register.ALL if r.group == group]
        parts.append(f"## {group or 'core (v1)'}\n")
        parts.append("| Kind | Versions | Names | Scope | Subresources | Columns | Verbs |")
        parts.append("|---|---|---|---|---|---|---|")
        for one in sorted(members, key=lambda r: r.kind):
            others = [v for v in one.versions if v != one.version]
            versions = f"{one.version}" + "".join(f" ({v})" for v in others)
            names = ", ".join([one.plural, *(f"`{short}`" for short in one.short_names)])
            shown = ", ".join(
                f"({c.name})" if c.priority else c.name for c in columns.table_columns(one) if c.name != "Name"
            )
            subresources = ", ".join((["status"] if one.status_subresource else []) + (["scale"] if one.scale else []))
            verbs = "" if set(one.verbs) == every else ", ".join(one.verbs)
            scope = "namespace" if one.namespaced else "cluster"
            parts.append(f"| {one.kind} | {versions} | {names} | {scope} | {subresources} | {shown} | {verbs} |")
        parts.append("")
    parts.append("""## Subresource APIs

`subresources.kubevirt.io/v1` (and v1alpha3): the calls and streams of `virtctl` on `virtualmachines` and
`virtualmachineinstances`; which there are stands in `server/lifecycle/routes.py`. `subresources.stead.io/v1alpha1`:
`xml` and `stats` of a virtualmachineinstance, which KubeVirt has not. Uploads: `/v1beta1/upload` and its variants, as
CDI's upload proxy.
""")
    return "\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {"settings": settings, "cli": cli, "kinds": kinds}


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--write"]:
        for name in arguments[1:] or PAGES:
            (REFERENCE / f"{name}.md").write_text(PAGES[name](), encoding="utf-8")
        return
    sys.stdout.write(PAGES[arguments[0]]())


if __name__ == "__main__":
    main(sys.argv[1:])

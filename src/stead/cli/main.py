"""The `stead` command: options common to all, and groups that are imported only when used.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted; `stead doctor` adds its own (see there).
"""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from stead import __version__
from stead.cli.session import Options

#: command → (module, attribute); sections in the order of `--help`.
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Machines": {
        "create": ("create", "create"),
        "list": ("machines", "list_machines"),
        "info": ("machines", "info"),
        "start": ("machines", "start"),
        "stop": ("machines", "stop"),
        "restart": ("machines", "restart"),
        "pause": ("machines", "pause"),
        "unpause": ("machines", "unpause"),
        "soft-reboot": ("machines", "soft_reboot"),
        "reset": ("machines", "reset"),
        "migrate": ("migrate", "migrate"),
        "migrate-cancel": ("migrate", "migrate_cancel"),
        "snapshot": ("copies", "snapshot"),
        "clone": ("copies", "clone"),
        "export": ("copies", "export"),
        "wait": ("resources", "wait"),
        "top": ("machines", "top"),
        "xml": ("machines", "xml"),
    },
    "Reach them": {
        "console": ("streams", "console"),
        "vnc": ("streams", "vnc"),
        "ssh": ("streams", "ssh"),
        "port-forward": ("streams", "port_forward"),
        "screenshot": ("streams", "screenshot"),
    },
    "Objects": {
        "apply": ("resources", "apply"),
        "get": ("resources", "get"),
        "delete": ("resources", "delete"),
        "events": ("resources", "events"),
        "convert": ("convert", "convert"),
        "image": ("images", "image"),
        "backup": ("backup", "backup"),
    },
    "Access": {
        "login": ("login", "login"),
        "user": ("users", "user"),
        "oidc-token": ("oidc_session", "oidc_token"),
    },
    "Hosts": {
        "host": ("host", "host"),
        "token": ("joining", "token"),
        "join": ("joining", "join"),
    },
    "This host": {
        "up": ("hosts", "up"),
        "down": ("hosts", "down"),
        "plane": ("hosts", "plane"),
        "agent": ("hosts", "agent"),
        "status": ("hosts", "status"),
        "doctor": ("doctor", "doctor"),
        "kubeconfig": ("hosts", "kubeconfig"),
        "rotate": ("rotate", "rotate"),
        "store": ("store", "store"),
        "next": ("hosts", "next_steps"),
        "uninstall": ("hosts", "uninstall"),
        "bench": ("bench", "bench"),
        "prove": ("prove", "prove"),
        "completion": ("completion", "completion"),
    },
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in COMMANDS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for section in COMMANDS.values():
            if cmd_name in section:
                module, attribute = section[cmd_name]
                found: click.Command = getattr(importlib.import_module(f"stead.cli.{module}"), attribute)
                return found
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in COMMANDS.items():
            rows = []
            for name in section:
                found = self.get_command(ctx, name)
                if found is not None and not found.hidden:
                    rows.append((name, found.get_short_help_str(limit=90)))
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stead")
@click.option("--kubeconfig", type=click.Path(path_type=Path, dir_okay=False), help="Which API, as kubectl reads it.")
@click.option("--context", default="", help="Context of the kubeconfig.")
@click.option("-n", "--namespace", default="", help="Namespace; else the context's, else `default`.")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Settings of this installation (TOML).")
@click.pass_context
def main(ctx: click.Context, kubeconfig: Path | None, context: str, namespace: str, config: Path | None) -> None:
    """Virtual machines on metal that you own, declared with KubeVirt's API."""
    ctx.obj = Options(kubeconfig, context, namespace, config)


if __name__ == "__main__":
    main()

"""One command's connection to the API: which kubeconfig, which namespace, and the calls that several commands share.

The kubeconfig is the first of: `--kubeconfig`, `KUBECONFIG`, the administrator's own of a Stead on this host (when it
can be read), `~/.kube/config`. `command` turns an `async def` that takes a Session into a click command body: it
connects, runs, closes, and turns refusals and connection failures into one sentence and exit code 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import aiohttp
import click
import msgspec

from stead.cli import output
from stead.client.contract import Object, Selection
from stead.client.direct import DirectClient
from stead.client.kubeconfig import KubeconfigError, load
from stead.config import ConfigError, Settings
from stead.config import load as load_settings
from stead.kinds import register
from stead.kinds.old_manifests import newer_version
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError

P = ParamSpec("P")

SUBRESOURCES = "/apis/subresources.kubevirt.io/v1"
#: what KubeVirt does not offer: the hypervisor's description and counters of a machine
OWN_SUBRESOURCES = "/apis/subresources.stead.io/v1alpha1"


class Options(msgspec.Struct, frozen=True):
    """The options before the command."""

    kubeconfig: Path | None
    context: str
    namespace: str
    config: Path | None

    def settings(self) -> Settings:
        """The installation's settings. Raises click.ClickException."""
        try:
            return load_settings(self.config)
        except ConfigError as error:
            raise click.ClickException(str(error)) from error


def resource_named(kind: str, api_version: str = "") -> Resource:
    """The served kind that a person means: Kind, plural, singular or short name, with or without `.group`."""
    word, _, group = kind.partition(".")
    if api_version:
        group = api_version.rpartition("/")[0]
    for resource in register.ALL:
        if api_version and api_version.rpartition("/")[2] not in resource.versions:
            continue
        if group and resource.group != group:
            continue
        if api_version and not group and resource.group:
            continue
        names = {resource.plural, resource.singular, resource.kind.lower(), *resource.short_names}
        if word.lower() in names:
            return resource
    where = f" in {api_version}" if api_version else ""
    if newer_version(group, api_version.rpartition("/")[2]) is not None:
        where += " any more (`stead convert` rewrites old manifests)"
    raise click.ClickException(f"Stead serves no kind {kind!r}{where}; `kubectl api-resources` lists what it serves")


class Session:
    """An open connection. `client` satisfies `client.contract.Client`."""

    def __init__(self, client: DirectClient, namespace: str, settings: Settings) -> None:
        self.client = client
        self.namespace = namespace
        self.settings = settings

    async def apply(self, resource: Resource, item: Object, *, dry_run: bool = False) -> str:
        """Create or merge; returns `created`, `configured` or `unchanged`."""
        meta = item["metadata"]
        namespace = meta.get("namespace") if resource.namespaced else None
        query = {"dryRun": "All"} if dry_run else {}
        if meta.get("name"):
            path = resource.path(namespace, meta["name"])
            try:
                before = await self.client.request_json("GET", path)
            except ApiError as error:
                if error.reason != "NotFound":
                    raise
            else:
                after = await self.client.request_json(
                    "PATCH", path, query=query, body=item, content_type="application/merge-patch+json"
                )
                same = before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]
                return "unchanged" if same else "configured"
        await self.client.request_json(
            "POST", resource.path(namespace), query={**query, "fieldValidation": "Strict"}, body=item
        )
        return "created"

    async def rows(
        self, resource: Resource, objects: list[Object], *, wide: bool, namespaces: bool
    ) -> tuple[list[str], list[list[Any]]]:
        """Headers and cells of objects by the kind's printed columns."""
        from stead.kinds import columns

        every = columns.table_columns(resource)
        headers = [column.name.upper() for column in every if wide or not column.priority]
        rows = []
        for item in objects:
            cells = columns.cells(resource, item, datetime.datetime.now(datetime.UTC))
            row = [cell for column, cell in zip(every, cells, strict=True) if wide or not column.priority]
            rows.append([item["metadata"].get("namespace"), *row] if namespaces else row)
        return (["NAMESPACE", *headers] if namespaces else headers), rows

    async def until_gone(
        self, resource: Resource, namespace: str | None, name: str, timeout: float, progress: output.Progress
    ) -> None:
        """Return when the object is gone; says which finalizers hold it. Raises click.ClickException."""
        try:
            uid = (await self.client.get(resource, namespace, name))["metadata"]["uid"]
            async with asyncio.timeout(timeout):
                while True:
                    found = await self.client.get(resource, namespace, name)
                    if found["metadata"]["uid"] != uid:
                        return
                    waits = ", ".join(found["metadata"].get("finalizers", [])) or "removal"
                    progress.show(f"waiting for {waits}")
                    await asyncio.sleep(0.2)
        except TimeoutError as error:
            raise click.ClickException(
                f"{resource.singular} {name} is still being deleted after {timeout} s"
            ) from error
        except ApiError as error:
            if error.reason != "NotFound":
                raise

    async def machine(self, name: str) -> Object:
        """The VirtualMachine, else the instance of that name. Raises ApiError NotFound."""
        try:
            return await self.client.get(register.VIRTUAL_MACHINE, self.namespace, name)
        except ApiError as error:
            instance = await self.instance_or_none(name) if error.reason == "NotFound" else None
            if instance is None:
                if error.reason == "NotFound":
                    error.message = f"no machine {name} in namespace {self.namespace} (`stead list -A` shows all)"
                raise
            return instance

    async def instance_or_none(self, name: str) -> Object | None:
        """The running instance of that name, if any."""
        try:
            return await self.client.get(register.VIRTUAL_MACHINE_INSTANCE, self.namespace, name)
        except ApiError as error:
            if error.reason != "NotFound":
                raise
            return None

    async def subresource(self, plural: str, name: str, subresource: str, body: Object) -> None:
        """PUT a life-cycle call."""
        path = f"{SUBRESOURCES}/namespaces/{self.namespace}/{plural}/{name}/{subresource}"
        await self.client.request_text("PUT", path, body=body)

    async def subresource_text(self, plural: str, name: str, subresource: str) -> str:
        """GET one of our own subresources (`xml`, `stats`)."""
        path = f"{OWN_SUBRESOURCES}/namespaces/{self.namespace}/{plural}/{name}/{subresource}"
        return await self.client.request_text("GET", path)

    async def usage(self, namespace: str | None) -> list[dict[str, Any]]:
        """Rates of every running machine over one second: cpu_percent, memory_bytes, read_bytes, written_bytes."""
        listed = await self.client.list(register.VIRTUAL_MACHINE_INSTANCE, Selection(namespace))
        running = [item["metadata"] for item in listed.items if item.get("status", {}).get("phase") == "Running"]

        async def sample(meta: Object) -> dict[str, float]:
            path = f"{OWN_SUBRESOURCES}/namespaces/{meta['namespace']}/virtualmachineinstances/{meta['name']}/stats"
            counters: dict[str, float] = msgspec.json.decode(await self.client.request_text("GET", path))
            return counters

        before = await asyncio.gather(*(sample(meta) for meta in running))
        await asyncio.sleep(1)
        after = await asyncio.gather(*(sample(meta) for meta in running))
        usage = []
        for meta, first, last in zip(running, before, after, strict=True):
            moved = {
                way: sum(last[key] - first.get(key, 0) for key in last if key.endswith(f"{way}_bytes"))
                for way in ("rd", "wr")
            }
            usage.append(
                {
                    "name": meta["name"],
                    "namespace": meta["namespace"],
                    "cpu_percent": (last.get("cpu_time_ns", 0) - first.get("cpu_time_ns", 0)) / 1e7,
                    "memory_bytes": last.get("memory_rss_bytes", 0),
                    "read_bytes": moved["rd"],
                    "written_bytes": moved["wr"],
                }
            )
        return usage

    async def machine_progress(self, name: str, goal: str) -> tuple[bool, str, float | None]:
        """(goal reached, sentence, fraction or None) for `stead wait`."""
        try:
            machine = await self.machine(name)
        except ApiError as error:
            if error.reason == "NotFound" and goal == "deleted":
                return True, "deleted", None
            raise
        status = machine.get("status", {})
        text = status.get("printableStatus") or status.get("phase") or "declared"
        if goal == "stopped":
            return text in ("Stopped", "Succeeded", "Failed"), text, None
        if goal == "deleted":
            return False, text, None
        if text == "Running":
            instance = await self.instance_or_none(name) or {}
            conditions = {item["type"]: item["status"] for item in instance.get("status", {}).get("conditions", [])}
            if goal == "running":
                return True, "Running", None
            if conditions.get("AgentConnected") == "True":
                guest = instance["status"].get("guestOSInfo", {}).get("prettyName", "the guest")
                return True, f"{guest} answers", None
            return False, "Running, the guest boots", None
        return False, *await self._disk_progress(machine, text)

    async def _disk_progress(self, machine: Object, text: str) -> tuple[str, float | None]:
        """What keeps a machine that does not run yet: a disk in hand with its progress, or a condition's message."""
        for template in machine.get("spec", {}).get("dataVolumeTemplates", []):
            try:
                disk = await self.client.get(register.DATA_VOLUME, self.namespace, template["metadata"]["name"])
            except ApiError:
                continue
            state = disk.get("status", {})
            if state.get("phase") != "Succeeded":
                done = state.get("progress", "").rstrip("%")
                fraction = float(done) / 100 if done.replace(".", "", 1).isdigit() else None
                return f"{text}: disk {disk['metadata']['name']} {state.get('phase', 'Pending')}", fraction
        for condition in machine.get("status", {}).get("conditions", []):
            if condition["type"] in ("Failure", "Provisioning") and condition.get("message"):
                return f"{text}: {condition['message']}", None
        return text, None


def kubeconfig_path(options: Options, settings: Settings) -> Path:
    """The kubeconfig to use; see the module's prose. Raises click.ClickException."""
    if options.kubeconfig:
        return options.kubeconfig
    if os.environ.get("KUBECONFIG"):
        return Path(os.environ["KUBECONFIG"].split(":")[0])
    own = settings.state_dir / "admin.kubeconfig"
    if os.access(own, os.R_OK):
        return own
    usual = Path.home() / ".kube" / "config"
    if usual.exists():
        return usual
    hint = "run as root, or " if os.geteuid() else "start Stead with `stead up`, or "
    raise click.ClickException(f"no kubeconfig found: {hint}name one with --kubeconfig or KUBECONFIG")


@contextlib.asynccontextmanager
async def open_session(options: Options, settings: Settings) -> AsyncIterator[Session]:
    """A connection that is closed at the end. Raises click.ClickException, and what `explained` explains."""
    config = load(kubeconfig_path(options, settings), context=options.context)
    client = DirectClient(config)
    try:
        yield Session(client, options.namespace or config.namespace or "default", settings)
    finally:
        await client.close()


@contextlib.contextmanager
def explained(options: Options, settings: Settings) -> Iterator[None]:
    """Turns refusals and connection failures into one sentence, an interruption into exit code 130."""
    try:
        yield
    except ApiError as error:
        raise click.ClickException(error.message) from error
    except (KubeconfigError, OSError, ssl.SSLError, aiohttp.ClientError) as error:
        path = kubeconfig_path(options, settings)
        raise click.ClickException(f"cannot reach the API by {path}: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def current_options() -> Options:
    """The options before the command that runs now."""
    return click.get_current_context().find_object(Options) or Options(None, "", "", None)


def command(body: Callable[Concatenate[Session, P], Awaitable[None]]) -> Callable[P, None]:
    """See the module's prose."""

    @functools.wraps(body)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        options = current_options()
        settings = options.settings()

        async def connected() -> None:
            async with open_session(options, settings) as session:
                await body(session, *args, **kwargs)

        with explained(options, settings):
            asyncio.run(connected())

    return run

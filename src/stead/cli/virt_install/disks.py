"""Disks and CD-ROMs: new volumes, files of registered directories, URLs, clones of images. Pure.

`path=` below a registered directory becomes a DataVolume on that directory's StorageClass which names its file
(`stead.io/file`, `stead.io/format`); a file that is there already is adopted as it is (`stead.io/adopt`). ISO files are
volumes that the machines of a namespace share. Everything else is a plain DataVolume of CDI's.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from stead.cli.virt_install.plan import Line, Object, Plan, Pool, amount, choice
from stead.cli.virt_install.suboptions import Given, Refusal

IMAGES_NAMESPACE = "kubevirt-os-images"
#: annotations of a claim that names its own file in a pool (read by the agent)
FILE = "stead.io/file"
FORMAT = "stead.io/format"
ADOPT = "stead.io/adopt"
#: sizes where nobody says one: the volume is sparse
_URL_DISK, _URL_ISO = "20Gi", "10Gi"
#: least size of a volume, bytes
_LEAST = 1 << 20
_FILE = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_+.,@=-]{0,199}")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_BUSES = ("virtio", "sata", "scsi", "usb")
_CACHES = ("none", "writethrough", "writeback", "default")


def add_disks(line: Line, plan: Plan) -> None:
    """All disks and CD-ROMs, in their order. Raises Refusal."""
    given = [disk for disk in line.all("--disk") if disk.get("path") != "none" or len(disk.values) > 1]
    if line.has("--image"):
        _add_image(line.text("--image"), given, plan)
    for disk in given:
        device = choice(disk, "device", ("disk", "cdrom"))
        if device == "cdrom":
            _add_cdrom(disk.get("path") or _of_pool(disk, plan), disk, plan)
        else:
            _add_disk(disk, plan)
    if line.has("--cdrom"):
        _add_cdrom(line.text("--cdrom"), Given("--cdrom", {}), plan)
    if line.has("--nodisks") and (given or line.has("--image")):
        raise Refusal("--nodisks excludes --disk and --image")


def _add_image(image: str, given: list[Given], plan: Plan) -> None:
    """--image: the first --disk with only a size gives the clone its size; else the image's own."""
    first = next((disk for disk in given if not _source_of(disk)), None)
    values = {"backing_store": image}
    if first is not None:
        given.remove(first)
        values |= first.values
    _add_disk(Given("--image", values), plan)


def _source_of(disk: Given) -> str:
    return disk.get("path") or disk.get("vol") or disk.get("backing_store") or disk.get("pool")


def _of_pool(disk: Given, plan: Plan) -> str:
    """The path that `vol=POOL/FILE` means; "" without."""
    volume = disk.get("vol")
    if not volume:
        return ""
    name, slash, file = volume.partition("/")
    if not slash:
        raise Refusal(f"{disk.flag} vol={volume[:80]}: POOL/FILE is meant")
    return str(_pool(disk, name, plan).path / file)


def _pool(disk: Given, name: str, plan: Plan) -> Pool:
    for pool in plan.facts.pools:
        if pool.name == name:
            return pool
    known = ", ".join(pool.name for pool in plan.facts.pools) or "none"
    raise Refusal(f"{disk.flag} names pool {name[:60]!r}; registered pools: {known}")


def _add_disk(disk: Given, plan: Plan) -> None:
    name = "rootdisk" if not any("disk" in entry for entry in plan.disks) else f"disk{_count(plan, 'disk')}"
    path = disk.get("path") or _of_pool(disk, plan)
    size = amount(f"{disk.flag} size", disk.get("size"), unit="Gi") if disk.get("size") else ""
    if disk.get("sparse") and disk.switch("sparse") is False:
        raise Refusal(f"{disk.flag} sparse=off is not offered: volumes are sparse")
    if disk.switch("removable"):
        raise Refusal(f"{disk.flag} removable=on is not offered")
    choice(disk, "discard", ("unmap",))
    form = choice(disk, "format", ("raw", "qcow2"))
    template_name = f"{plan.name}-{name}"
    if disk.get("backing_store"):
        if path:
            raise Refusal(f"{disk.flag}: path= and backing_store= exclude each other; a clone gets a volume of its own")
        template = _template(template_name, _clone_of(disk), size, _class(disk, plan))
    elif _is_url(path):
        template = _template(template_name, {"source": _url_source(disk, path)}, size or _URL_DISK, _class(disk, plan))
    elif path:
        template = _file_template(template_name, disk, path, size, plan)
        form = ""
    elif size:
        template = _template(template_name, {"source": {"blank": {}}}, size, _class(disk, plan))
    else:
        raise Refusal(f"{disk.flag} says neither path= nor size=: how large is the disk to be?")
    if form == "qcow2" and "blank" in template["spec"].get("source", {}):
        template["metadata"]["annotations"] = {FORMAT: form}
    elif form == "qcow2":
        plan.warn(f"{disk.flag} format=qcow2: what comes from a URL or an image is kept as raw")
    plan.templates.append(template)
    target: Object = {}
    if choice(disk, "bus", (*_BUSES, "ide")) == "ide":
        raise Refusal(f"{disk.flag} bus=ide is not offered; virtio, sata, scsi and usb are")
    if disk.get("bus"):
        target["bus"] = disk.get("bus")
    if disk.switch("readonly"):
        target["readonly"] = True
    _attach(name, {"disk": target}, {"dataVolume": {"name": template_name}}, disk, plan)


def _count(plan: Plan, device: str) -> int:
    return sum(1 for entry in plan.disks if device in entry)


def _attach(name: str, device: Object, source: Object, disk: Given, plan: Plan) -> None:
    entry: Object = {"name": name, **device}
    cache = choice(disk, "cache", _CACHES)
    if cache and cache != "default":
        entry["cache"] = cache
    io = choice(disk, "io", ("native", "threads"))
    if io:
        entry["io"] = io
    serial = disk.get("serial")
    if serial:
        if not re.fullmatch(r"[A-Za-z0-9_.+ -]{1,256}", serial):
            raise Refusal(f"{disk.flag} serial={serial[:40]}: up to 256 letters, digits and `_.+-` are meant")
        entry["serial"] = serial
    order = disk.number("boot.order", most=64)
    if order:
        entry["bootOrder"] = order
    if disk.switch("shareable"):
        entry["shareable"] = True
    policy = choice(disk, "error_policy", ("stop", "ignore", "report", "enospace"))
    if policy:
        entry["errorPolicy"] = policy
    plan.disks.append(entry)
    plan.volumes.append({"name": name, **source})


def _class(disk: Given, plan: Plan) -> str:
    return _pool(disk, disk.get("pool"), plan).storage_class if disk.get("pool") else ""


def _template(name: str, source: Object, size: str, storage_class: str) -> Object:
    storage: Object = {}
    if size:
        storage["resources"] = {"requests": {"storage": size}}
    if storage_class:
        storage["storageClassName"] = storage_class
    return {"metadata": {"name": name}, "spec": {**source, "storage": storage}}


def _clone_of(disk: Given) -> Object:
    image = disk.get("backing_store")
    if "://" in image or image.startswith(("/", ".")):
        raise Refusal(
            f"{disk.flag} backing_store={image[:80]} is no image's name; `stead image add NAME --from {image[:80]}` "
            "makes one, then backing_store=NAME clones it"
        )
    namespace, slash, name = image.rpartition("/")
    if not _NAME.fullmatch(name) or (slash and not _NAME.fullmatch(namespace)):
        raise Refusal(f"{disk.flag} {image[:80]}: this is no name of an image; `stead image list` shows them")
    return {"sourceRef": {"kind": "DataSource", "name": name, "namespace": namespace or IMAGES_NAMESPACE}}


def _is_url(path: str) -> bool:
    return "://" in path


def _url_source(disk: Given, url: str) -> Object:
    parts = _parts(disk.flag, url)
    if parts.scheme == "docker":
        return {"registry": {"url": url}}
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Refusal(f"{disk.flag} {url[:120]}: an http, https or docker URL is meant")
    if parts.username or parts.password:
        raise Refusal(f"{disk.flag}: a password in a URL can be read by all; make a DataVolume with secretRef")
    return {"http": {"url": url}}


def _parts(flag: str, url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  (raises for a bad port)
    except ValueError:
        raise Refusal(f"{flag} {url[:120]}: this is no URL") from None
    return parts


def _file_template(name: str, disk: Given, path: str, size: str, plan: Plan) -> Object:
    pool, file = locate(disk.flag, path, plan)
    found = plan.facts.exists(pool.path / file)
    form = disk.get("format")
    adopts = found or (found is None and not size)
    if found:
        actual, there = _inspected(disk, pool.path / file, plan)
        form, size = actual or form, there or size
    if not size:
        why = "there is no such file; add size= to make it" if found is False else "it is not seen from here; add size="
        raise Refusal(f"{disk.flag} path={path[:120]}: {why}")
    template = _template(name, {"source": {"blank": {}}}, size, pool.storage_class)
    annotations = {FILE: file, FORMAT: form or _format_of(file)}
    template["metadata"]["annotations"] = {**annotations, ADOPT: "true"} if adopts else annotations
    return template


def _inspected(disk: Given, file: Path, plan: Plan) -> tuple[str, str]:
    """(format, size) of an existing image: the exact size, so that nothing is to grow. Raises Refusal."""
    actual, count = plan.facts.inspect(file)
    if actual and actual not in ("raw", "qcow2"):
        raise Refusal(f"{disk.flag} {file}: the image is {actual}; `stead image add NAME --from {file}` converts it")
    if actual and disk.get("format") and disk.get("format") != actual:
        raise Refusal(f"{disk.flag} {file}: the image is {actual}, not {disk.get('format')}")
    return actual, str(max(count, _LEAST)) if count else ""


def _format_of(file: str) -> str:
    return "qcow2" if file.endswith(".qcow2") else "raw"


def locate(flag: str, path: str, plan: Plan) -> tuple[Pool, str]:
    """(pool, file name) of a path directly in a registered directory. Raises Refusal that says how to register it."""
    if not path.startswith("/"):
        raise Refusal(f"{flag} {path[:120]}: give the whole path, beginning with /")
    cleaned = posixpath.normpath(path)
    folder, _, file = cleaned.rpartition("/")
    for pool in plan.facts.pools:
        if str(pool.path) == folder:
            if not _FILE.fullmatch(file):
                raise Refusal(f"{flag} {path[:120]}: a name has letters, digits and `_.,+@=-`, and no dot in front")
            return pool, file
    name = re.sub(r"[^a-z0-9]+", "-", folder.rpartition("/")[2].lower()).strip("-") or "more"
    raise Refusal(
        f"{flag} {path[:120]}: {folder[:120] or '/'} is not a registered directory; add "
        f'[[pools]] name = "{name[:40]}", path = "{folder[:120] or "/"}" to /etc/stead/stead.toml and restart Stead'
    )


def _add_cdrom(path: str, disk: Given, plan: Plan) -> None:
    name = f"cdrom{_count(plan, 'cdrom') or ''}"
    target: Object = {"cdrom": {"bus": choice(disk, "bus", ("sata", "scsi", "usb")) or "sata"}}
    if not path:
        raise Refusal(f"{disk.flag}: which ISO file or URL?")
    if _is_url(path):
        size = amount(f"{disk.flag} size", disk.get("size"), unit="Gi") if disk.get("size") else _URL_ISO
        source = {"source": _url_source(disk, path)}
        volume = _shared(_slug(path), source, size, _class(disk, plan), plan)
    else:
        pool, file = locate(disk.flag, path, plan)
        found = plan.facts.exists(pool.path / file)
        if found is False:
            raise Refusal(f"{disk.flag} {path[:120]}: there is no such file")
        size = _inspected(disk, pool.path / file, plan)[1] if found else ""
        if disk.get("size") and not size:
            size = amount(f"{disk.flag} size", disk.get("size"), unit="Gi")
        if not size:
            raise Refusal(f"{disk.flag} {path[:120]}: it cannot be seen from here; use --disk PATH,device=cdrom,size=")
        volume = _shared(_slug(str(pool.path / file)), {"source": {"blank": {}}}, size, pool.storage_class, plan)
        volume["metadata"]["annotations"] |= {FILE: file, FORMAT: "raw", ADOPT: "true"}
    if not any(item is volume or item["metadata"]["name"] == volume["metadata"]["name"] for item in plan.shared):
        plan.shared.append(volume)
    source = {"persistentVolumeClaim": {"claimName": volume["metadata"]["name"]}}
    _attach(name, {**target, "shareable": True}, source, disk, plan)  # several machines may read it at once


def _slug(path: str) -> str:
    """A volume's name for a file or URL: its last part, and a digest that tells apart what is elsewhere."""
    last = path.rstrip("/").rpartition("/")[2].lower().partition("?")[0]
    word = re.sub(r"[^a-z0-9]+", "-", last.removesuffix(".iso")).strip("-")[:40] or "disc"
    return f"iso-{word}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def _shared(name: str, source: Object, size: str, storage_class: str, plan: Plan) -> Object:
    template = _template(name, source, size, storage_class)
    template["metadata"] |= {"namespace": plan.facts.namespace, "annotations": {}}
    return {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", **template}

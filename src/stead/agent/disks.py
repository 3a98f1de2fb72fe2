"""Makes the volumes of a machine ready on this host, and takes away what was made only for it.

Called by `bringup.py` in the machine's own background task; different machines run concurrently. Sources: claims
through their PersistentVolume's handle, container disks (overlay on a read-only base by digest), empty and ephemeral
disks, cloud-init, Secret, ConfigMap, downwardAPI, ServiceAccount and sysprep disks (ISO), host disks below allowed
folders. Files belong to the machine's uid; every path lies below a root of ours. What is missing raises `NotReady`,
what is refused `Unsupported`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from stead.agent import guestdata, kernels, paths
from stead.agent import vmi as reading
from stead.agent.lookups import Lookups
from stead.agent.materials import File, Materials
from stead.agent.prepared import NotReady, PreparedKernel, PreparedVolume, Unsupported

Object = dict[str, Any]

#: takes the disk at a path, for the volume of that name, before it is touched; NotReady while somebody else has it
Take = Callable[[str, str], None]

#: a host disk may be this much smaller than asked (KubeVirt's lessPVCSpaceToleration, in percent)
HOST_DISK_TOLERANCE_PERCENT = 10


class Owner(msgspec.Struct, frozen=True):
    """Whose files these are: the machine's uid and gid, and its private folder (owned by root)."""

    uid: int
    gid: int
    directory: Path

    @property
    def ids(self) -> tuple[int, int]:
        return self.uid, self.gid


class _Job(msgspec.Struct, frozen=True):
    """One volume in the making: the instance, the volume's entry, its source and its field path."""

    vmi: Object
    name: str
    source: Object
    kind: str
    field: str
    owner: Owner
    take: Take


async def together(*works: Coroutine[Any, Any, Any]) -> tuple[Any, ...]:
    """All results, in order; when one fails, the others are given up and its error is raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return tuple(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


class Disks:
    """Volumes of machines on this host. `host_disk_roots` are folders that an administrator has registered."""

    def __init__(self, lookups: Lookups, materials: Materials, host_disk_roots: tuple[Path, ...] = ()) -> None:
        self._lookups = lookups
        self._materials = materials
        self._host_disk_roots = host_disk_roots
        iso = self._iso
        self._makers: dict[str, Callable[[_Job], Coroutine[Any, Any, PreparedVolume]]] = {
            "persistentVolumeClaim": self._claim,
            "dataVolume": self._claim,
            "ephemeral": self._ephemeral,
            "containerDisk": self._container_disk,
            "emptyDisk": self._empty,
            "hostDisk": self._host_disk,
            "cloudInitNoCloud": iso,
            "cloudInitConfigDrive": iso,
            "secret": iso,
            "configMap": iso,
            "downwardAPI": iso,
            "serviceAccount": iso,
            "sysprep": iso,
        }

    def roots(self) -> tuple[Path, ...]:
        """Folders under which disks of claims lie."""
        return self._materials.roots()

    async def volume(self, pool: str, volume: str) -> File:
        """The disk behind a volume handle. LookupError, OSError when it is not on this host."""
        return await self._materials.volume(pool, volume)

    async def prepare(self, vmi: Object, owner: Owner, take: Take) -> tuple[PreparedVolume, ...]:
        """All volumes, in the VMI's order. Safe to call again: what exists and must persist is kept."""
        making = []
        for index, entry in enumerate(reading.spec(vmi).get("volumes") or []):
            kind, source = reading.source_of(entry)
            maker = self._makers.get(kind)
            field = f"spec.volumes[{index}].{kind}"
            if maker is None:
                raise Unsupported(field, "is not a volume source that this release of Stead honours")
            making.append((maker, _Job(vmi, str(entry["name"]), source, kind, field, owner, take)))
        return await together(*(maker(job) for maker, job in making))

    async def prepare_kernel(self, vmi: Object, owner: Owner) -> PreparedKernel:
        """Kernel and initrd of `firmware.kernelBoot.container`: from an image, a web server or a pool's folder."""
        boot = (reading.domain(vmi).get("firmware") or {}).get("kernelBoot") or {}
        container = boot.get("container")
        if not container:
            return PreparedKernel()
        if kernels.is_direct(str(container.get("image") or "")):
            return await kernels.prepare(container, owner.directory, owner.ids, self._materials)
        wanted = [str(container[k]) for k in ("kernelPath", "initrdPath") if container.get(k)]
        access = await self._lookups.registry_access(
            reading.namespace(vmi), str(container.get("imagePullSecret") or "")
        )
        policy = str(container.get("imagePullPolicy") or "IfNotPresent")
        try:
            files = await self._materials.container_files(str(container["image"]), policy, access, tuple(wanted))
        except (LookupError, OSError) as error:
            raise NotReady("ErrImagePull", f"kernel image {container['image']}: {error}", 10) from error
        found = dict(zip(wanted, files, strict=True))
        return PreparedKernel(
            kernel=found.get(str(container.get("kernelPath")), ""),
            initrd=found.get(str(container.get("initrdPath")), ""),
        )

    async def prepare_acpi_tables(self, vmi: Object, owner: Owner) -> tuple[tuple[str, str], ...]:
        """(signature, file) of SLIC and MSDM tables that Secret volumes hold."""
        acpi = (reading.domain(vmi).get("firmware") or {}).get("acpi") or {}
        tables = []
        for field, signature in (("slicNameRef", "SLIC"), ("msdmNameRef", "MSDM")):
            if not acpi.get(field):
                continue
            entry = reading.volume(vmi, str(acpi[field]))
            secret = ((entry or {}).get("secret") or {}).get("secretName")
            if not secret:
                raise Unsupported(f"spec.domain.firmware.acpi.{field}", "does not name a Secret volume")
            data = guestdata.data_of(await self._lookups.secret(reading.namespace(vmi), str(secret)))
            content = next(iter(data.values()), b"")
            name = f"acpi-{signature.lower()}.bin"
            await asyncio.to_thread(paths.write_file, owner.directory, name, content, uid=owner.uid, gid=owner.gid)
            tables.append((signature, str(owner.directory / name)))
        return tuple(tables)

    # claims ------------------------------------------------------------------------------------------------------

    async def _volume_of_claim(self, job: _Job, claim: str) -> tuple[Object, File]:
        namespace = reading.namespace(job.vmi)
        pvc = await self._lookups.claim(namespace, claim)
        handle = await self._lookups.volume_handle(pvc)
        pool, _, volume = handle.partition("/")
        try:
            return pvc, await self._materials.volume(pool, volume)
        except (LookupError, OSError) as error:
            raise NotReady("FailedMount", f"volume of claim {claim} is not on this host: {error}") from error

    async def _claim(self, job: _Job) -> PreparedVolume:
        claim = str(job.source.get("claimName") or job.source.get("name") or "")
        pvc, file = await self._volume_of_claim(job, claim)
        root, relative = self._locate(file.path, job.field)
        job.take(file.path, job.name)
        facts = await asyncio.to_thread(paths.inspect, root, relative)
        await asyncio.to_thread(paths.give, root, relative, *job.owner.ids)
        status = pvc.get("status") or {}
        return PreparedVolume(
            name=job.name, kind=job.kind, path=file.path, format=file.format, size=file.virtual_bytes,
            source="block" if facts.block else "file", direct_io=facts.direct_io,
            preallocated=facts.preallocated and file.format == "raw",  # a qcow2 is short, not full
            read_only=bool(job.source.get("readOnly")), claim=claim,
            capacity=str((status.get("capacity") or {}).get("storage") or ""),
            access_modes=tuple(status.get("accessModes") or pvc["spec"].get("accessModes") or ()),
            volume_mode=str(pvc["spec"].get("volumeMode") or "Filesystem"),
            shared="ReadWriteMany" in (status.get("accessModes") or pvc["spec"].get("accessModes") or ()),
        )  # fmt: skip

    async def _ephemeral(self, job: _Job) -> PreparedVolume:
        claim = str((job.source.get("persistentVolumeClaim") or {}).get("claimName") or "")
        _, base = await self._volume_of_claim(job, claim)
        root, relative = self._locate(base.path, job.field)
        await asyncio.to_thread(paths.allow_reading, root, relative, job.owner.uid)
        return await self._on_overlay(job, base)

    # container, empty and host disks -----------------------------------------------------------------------------

    async def _container_disk(self, job: _Job) -> PreparedVolume:
        image = str(job.source.get("image") or "")
        policy = str(job.source.get("imagePullPolicy") or "IfNotPresent")
        secret = str(job.source.get("imagePullSecret") or "")
        access = await self._lookups.registry_access(reading.namespace(job.vmi), secret)
        try:
            base = await self._materials.container_disk(image, policy, access, str(job.source.get("path") or ""))
        except (LookupError, OSError) as error:
            raise NotReady("ErrImagePull", f"container disk {image}: {error}", 10) from error
        return await self._on_overlay(job, base)

    async def _on_overlay(self, job: _Job, base: File) -> PreparedVolume:
        target = job.owner.directory / f"{job.name}.qcow2"
        await asyncio.to_thread(target.unlink, missing_ok=True)  # its writes vanish with every start
        await self._materials.overlay(base, target, job.owner.ids)
        return await self._made(job, target, "qcow2", base)

    async def _empty(self, job: _Job) -> PreparedVolume:
        try:
            size = reading.size_in_bytes(job.source.get("capacity") or "")
        except ValueError as error:
            raise Unsupported(f"{job.field}.capacity", str(error)) from error
        target = job.owner.directory / f"{job.name}.qcow2"
        await asyncio.to_thread(target.unlink, missing_ok=True)
        await self._materials.empty(target, size, job.owner.ids)
        return await self._made(job, target, "qcow2", File(path="", format="", virtual_bytes=size))

    async def _made(self, job: _Job, target: Path, format: str, base: File) -> PreparedVolume:
        await asyncio.to_thread(paths.give, target.parent, target.name, *job.owner.ids)
        facts = await asyncio.to_thread(paths.inspect, target.parent, target.name)
        return PreparedVolume(
            name=job.name, kind=job.kind, path=str(target), format=format, base=base.path, base_format=base.format,
            size=base.virtual_bytes, digest=base.digest, direct_io=facts.direct_io,
        )  # fmt: skip

    async def _host_disk(self, job: _Job) -> PreparedVolume:
        path = str(job.source.get("path") or "")
        located = paths.below(path, self._host_disk_roots)
        if located is None:
            folders = ", ".join(str(root) for root in self._host_disk_roots) or "none"
            raise Unsupported(
                f"{job.field}.path", f"{path} is not below a folder of the setting host_disk_roots ({folders})"
            )
        job.take(str(located[0] / located[1]), job.name)
        wanted = reading.size_in_bytes(job.source.get("capacity") or 0)
        create = job.source.get("type") == "DiskOrCreate"
        return await asyncio.to_thread(_open_host_disk, job, located, wanted, create)

    # disks made from objects -------------------------------------------------------------------------------------

    async def _iso(self, job: _Job) -> PreparedVolume:
        files, label = await self._iso_content(job)
        target = job.owner.directory / f"{job.name}.iso"
        await asyncio.to_thread(target.unlink, missing_ok=True)
        await self._materials.iso(files, label, target, job.owner.ids)
        await asyncio.to_thread(paths.give, target.parent, target.name, *job.owner.ids, 0o600)
        facts = await asyncio.to_thread(paths.inspect, target.parent, target.name)
        return PreparedVolume(
            name=job.name, kind=job.kind, path=str(target), read_only=True, size=facts.size, direct_io=facts.direct_io
        )

    async def _iso_content(self, job: _Job) -> tuple[dict[str, bytes], str]:
        namespace = reading.namespace(job.vmi)
        label = str(job.source.get("volumeLabel") or "")
        optional = bool(job.source.get("optional"))
        if job.kind == "cloudInitNoCloud":
            return guestdata.nocloud_files(job.vmi, await self._cloud_init(job)), guestdata.NOCLOUD_LABEL
        if job.kind == "cloudInitConfigDrive":
            return guestdata.config_drive_files(job.vmi, await self._cloud_init(job)), guestdata.CONFIG_DRIVE_LABEL
        if job.kind == "secret":
            secret = await self._lookups.secret(namespace, str(job.source.get("secretName") or ""), optional=optional)
            return guestdata.data_of(secret), label
        if job.kind == "configMap":
            found = await self._lookups.config_map(namespace, str(job.source.get("name") or ""), optional=optional)
            return guestdata.data_of_config_map(found), label
        if job.kind == "downwardAPI":
            return guestdata.downward_files(job.vmi, job.source), label
        if job.kind == "serviceAccount":
            account = str(job.source.get("serviceAccountName") or "default")
            return await self._lookups.service_account_files(namespace, account), label
        return guestdata.sysprep_files(await self._sysprep_data(job, namespace)), "sysprep"

    async def _sysprep_data(self, job: _Job, namespace: str) -> dict[str, bytes]:
        secret = (job.source.get("secret") or {}).get("name")
        if secret:
            return guestdata.data_of(await self._lookups.secret(namespace, str(secret)))
        name = str((job.source.get("configMap") or {}).get("name") or "")
        return guestdata.data_of_config_map(await self._lookups.config_map(namespace, name))

    async def _cloud_init(self, job: _Job) -> guestdata.CloudInit:
        user = await self._text(job, "userData", "userDataBase64", "secretRef", ("userdata", "userData"))
        network = await self._text(
            job, "networkData", "networkDataBase64", "networkDataSecretRef", ("networkdata", "networkData")
        )
        method = "noCloud" if job.kind == "cloudInitNoCloud" else "configDrive"
        return guestdata.CloudInit(user=user, network=network, ssh_keys=await self._ssh_keys(job, method))

    async def _text(self, job: _Job, inline: str, encoded: str, reference: str, keys: tuple[str, ...]) -> bytes:
        if job.source.get(inline):
            return str(job.source[inline]).encode()
        if job.source.get(encoded):
            return guestdata.decode_base64(str(job.source[encoded]), f"{job.field}.{encoded}")
        name = (job.source.get(reference) or {}).get("name")
        if not name:
            return b""
        data = guestdata.data_of(await self._lookups.secret(reading.namespace(job.vmi), str(name)))
        for key in keys:
            if key in data:
                return data[key]
        raise NotReady("FailedMount", f"Secret {name} has no key {' or '.join(keys)}")

    async def _ssh_keys(self, job: _Job, method: str) -> tuple[str, ...]:
        keys: tuple[str, ...] = ()
        for credential in reading.spec(job.vmi).get("accessCredentials") or []:
            ssh = credential.get("sshPublicKey") or {}
            name = ((ssh.get("source") or {}).get("secret") or {}).get("secretName")
            if name and method in (ssh.get("propagationMethod") or {}):
                keys += guestdata.ssh_keys_of(await self._lookups.secret(reading.namespace(job.vmi), str(name)))
        return keys

    def _locate(self, path: str, field: str) -> tuple[Path, str]:
        located = paths.below(path, self._materials.roots())
        if located is None:
            raise Unsupported(field, f"{path} does not lie in a pool of this host")
        return located


def _open_host_disk(job: _Job, located: tuple[Path, str], wanted: int, create: bool) -> PreparedVolume:
    """Blocking part of host disks: open, or make sparse with the wanted size, and hand to the machine."""
    root, relative = located
    try:
        facts = paths.inspect(root, relative)
    except FileNotFoundError as error:
        if not create:
            raise NotReady("FailedMount", f"{job.field}.path: {root / relative} does not exist") from error
        descriptor = paths.open_beneath(root, relative, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.ftruncate(descriptor, wanted)
        os.close(descriptor)
        facts = paths.inspect(root, relative)
    except OSError as error:
        raise Unsupported(f"{job.field}.path", f"{root / relative}: {error.strerror}") from error
    if facts.size * 100 < wanted * (100 - HOST_DISK_TOLERANCE_PERCENT):
        raise Unsupported(f"{job.field}.capacity", f"{root / relative} holds {facts.size} bytes, not {wanted}")
    paths.give(root, relative, *job.owner.ids)
    return PreparedVolume(
        name=job.name, kind=job.kind, path=str(root / relative), size=facts.size, direct_io=facts.direct_io,
        preallocated=facts.preallocated, source="block" if facts.block else "file",
    )  # fmt: skip

"""The driver's part of backups: libvirt's checkpoints and pull-mode backup jobs. Blocking; in pool threads.

Called by `driver.py` only. XML is made by pure functions. A job's scratch files and socket lie in the machine's own
folders and belong to its uid, since libvirt changes no owner for us. Source: libvirt's formatbackup and
formatcheckpoint (9.0).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import libvirt

from stead.hypervisor.contract import BACKUP_BITMAP, BackupJob, Busy, Checkpoint, Failed, Machine, NotFound
from stead.hypervisor.libvirt.devices import disk_targets

BEGIN_SECONDS = 60.0
_SOCKET_SECONDS = 10.0
_BITMAP_LOST = (libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT, libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT)


def backup_xml(job: BackupJob, targets: dict[str, str]) -> str:
    """`<domainbackup>` in pull mode; disks that are not named take no part."""
    root = ET.Element("domainbackup", mode="pull")
    if job.since:
        ET.SubElement(root, "incremental").text = job.since
    ET.SubElement(root, "server", transport="unix", socket=job.socket)
    disks = ET.SubElement(root, "disks")
    taken = {disk.name: disk for disk in job.disks}
    for name, target in targets.items():
        if name not in taken:
            ET.SubElement(disks, "disk", name=target, backup="no")
            continue
        element = ET.SubElement(disks, "disk", name=target, backup="yes", type="file", exportname=name)
        if job.since:
            element.set("exportbitmap", BACKUP_BITMAP)
        ET.SubElement(element, "driver", type="qcow2")
        ET.SubElement(element, "scratch", file=taken[name].scratch)
    return ET.tostring(root, encoding="unicode")


def checkpoint_xml(job: BackupJob, targets: dict[str, str]) -> str:
    """`<domaincheckpoint>`: a bitmap in each disk that takes part."""
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = job.checkpoint
    disks = ET.SubElement(root, "disks")
    taken = {disk.name for disk in job.disks}
    for name, target in targets.items():
        ET.SubElement(disks, "disk", name=target, checkpoint="bitmap" if name in taken else "no")
    return ET.tostring(root, encoding="unicode")


def begin(domain: libvirt.virDomain, machine: Machine, job: BackupJob) -> None:
    """Start the job and wait for its socket."""
    targets = disk_targets(machine)
    if unknown := [disk.name for disk in job.disks if disk.name not in targets]:
        raise NotFound(f"backup of {domain.name()}: it has no disk {unknown[0]}")
    _make_scratch(domain, machine, job, targets)
    Path(job.socket).unlink(missing_ok=True)
    text = checkpoint_xml(job, targets) if job.checkpoint else None
    try:
        domain.backupBegin(backup_xml(job, targets), text, libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL)
    except libvirt.libvirtError as error:
        _remove_scratch(job)
        if error.get_error_code() in _BITMAP_LOST:
            raise NotFound(f"backup of {domain.name()} since {job.since}: {error.get_error_message()}") from error
        raise
    deadline = time.monotonic() + _SOCKET_SECONDS
    while not Path(job.socket).exists():
        if time.monotonic() > deadline:
            raise Failed(f"backup of {domain.name()}: QEMU does not listen on {job.socket}")
        time.sleep(0.01)
    os.chmod(job.socket, 0o600)
    for disk in job.disks:  # open by now: nobody else needs the name, and a crash leaves nothing
        Path(disk.scratch).unlink(missing_ok=True)


def _make_scratch(domain: libvirt.virDomain, machine: Machine, job: BackupJob, targets: dict[str, str]) -> None:
    for disk in job.disks:
        size = domain.blockInfo(targets[disk.name])[0]
        path = Path(disk.scratch)
        path.unlink(missing_ok=True)
        command = ["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)]
        made = subprocess.run(command, capture_output=True, timeout=30, check=False)
        if made.returncode:
            raise Failed(f"backup of {domain.name()}: {made.stderr.decode(errors='replace')[:300]}")
        path.chmod(0o600)
        if machine.isolation.uid:
            os.chown(path, machine.isolation.uid, machine.isolation.gid or machine.isolation.uid)


def _remove_scratch(job: BackupJob) -> None:
    for disk in job.disks:
        Path(disk.scratch).unlink(missing_ok=True)


def end(domain: libvirt.virDomain) -> None:
    """Cancel the job, which is how a pull ends, and wait until it is gone."""
    deadline = time.monotonic() + BEGIN_SECONDS
    while domain.isActive() and domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
        with contextlib.suppress(libvirt.libvirtError):
            domain.abortJob()
        if time.monotonic() > deadline:
            raise Busy(f"backup of {domain.name()}: the job does not end")
        time.sleep(0.02)


def checkpoints(domain: libvirt.virDomain) -> tuple[Checkpoint, ...]:
    found = domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
    return tuple(
        Checkpoint(name=one.getName(), record=one.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN))
        for one in found
    )


def restore(domain: libvirt.virDomain, known: tuple[Checkpoint, ...]) -> bool:
    """Define checkpoints again whose bitmaps are in the disks. All or none."""
    flags = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
    present = {one.getName() for one in domain.listAllCheckpoints(0)}
    made = []
    for checkpoint in known:
        if checkpoint.name in present:
            continue
        try:
            made.append(domain.checkpointCreateXML(checkpoint.record, flags))
        except libvirt.libvirtError:
            for one in reversed(made):
                with contextlib.suppress(libvirt.libvirtError):
                    one.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
            return False
    return True


def delete(domain: libvirt.virDomain, name: str) -> None:
    """With its bitmaps; where those are gone, what libvirt knows of it."""
    try:
        checkpoint = domain.checkpointLookupByName(name, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
            return
        raise
    try:
        checkpoint.delete(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:
            raise
        checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)

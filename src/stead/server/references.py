"""What an object may refer to: data of other namespaces, files of a pool, what only Stead itself may say.

Called by `verbs` for every write, after admission. A clone reads somebody's disk, so whoever declares it needs `create`
on `datavolumes/source` (cdi.kubevirt.io) in the namespace that it reads from, as in CDI. That holds for DataVolumes,
for the dataVolumeTemplates of a VirtualMachine, and for DataSources that point elsewhere, so that each link of a chain
was made by somebody who may read its end. Files of a pool, by name or as a kernel, are the administrator's: they need
the right to make PersistentVolumes. Annotations by which plane and agent talk to each other are theirs alone. Pure but
for the authorizer's look-ups; only references that a write adds are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from stead.kinds import register
from stead.kinds.resource import Resource
from stead.server.authn import User
from stead.server.authz import Attributes, Authorizer, forbidden

Object = dict[str, Any]

#: annotations that name files of a pool
FILE_ANNOTATIONS = ("stead.io/file", "stead.io/format", "stead.io/adopt")
#: annotations that plane and agent write for each other
OWN_ANNOTATIONS = (
    "stead.io/source", "stead.io/volume-handle", "stead.io/transfer", "stead.io/image-digest", "stead.io/addresses",
    "stead.io/host", "stead.io/snapshot-group", "stead.io/indications",
)  # fmt: skip
#: who may write those: our controllers, and agents (what those may write is `node_authz`'s business)
_CONTROLLERS = "system:serviceaccounts:kubevirt"
_NODES = "system:nodes"


class Reference(msgspec.Struct, frozen=True):
    """Something that an object refers to. `kind` is namespace, file or own; `name` says which."""

    kind: str
    name: str


def references(resource: Resource, obj: Object) -> set[Reference]:
    """All references of an object that need a right of their own."""
    return set(_references(resource, obj))


def _references(resource: Resource, obj: Object) -> Iterator[Reference]:
    metadata = obj.get("metadata") or {}
    namespace = metadata.get("namespace") or ""
    spec = obj.get("spec") or {}
    kind = (resource.group, resource.kind)
    if kind == _key(register.MACHINE_SNAPSHOT_CONTENT):
        # what is restored from it is written in our controller's name
        yield from _of_machine((spec.get("source") or {}).get("virtualMachine") or {}, namespace)
        for backup in spec.get("volumeBackups") or ():
            yield from _annotations((backup.get("persistentVolumeClaim") or {}).get("metadata") or {})
    elif kind == _key(register.VIRTUAL_MACHINE):
        yield from _of_machine(obj, namespace)
    elif kind == _key(register.VIRTUAL_MACHINE_INSTANCE):
        yield from _annotations(metadata)
        yield from _kernel(spec)
    elif kind == _key(register.DATA_VOLUME):
        yield from _annotations(metadata)
        yield from _data(spec, namespace)
    elif kind == _key(register.DATA_IMPORT_CRON):
        yield from _data((spec.get("template") or {}).get("spec") or {}, namespace)
    elif kind == _key(register.DATA_SOURCE):
        yield from _data(spec, namespace)
    elif kind in _SPOKEN_BY:
        yield from _annotations(metadata)


def _of_machine(machine: Object, namespace: str) -> Iterator[Reference]:
    spec = machine.get("spec") or {}
    for template in spec.get("dataVolumeTemplates") or ():
        yield from _annotations(template.get("metadata") or {})
        yield from _data(template.get("spec") or {}, namespace)
    template = spec.get("template") or {}
    yield from _annotations(template.get("metadata") or {})
    yield from _kernel(template.get("spec") or {})


def _key(resource: Resource) -> tuple[str, str]:
    return resource.group, resource.kind


def _annotations(metadata: Object) -> Iterator[Reference]:
    for name, value in (metadata.get("annotations") or {}).items():
        if name in FILE_ANNOTATIONS:
            yield Reference("file", f"annotation {name}: {value}")
        elif name in OWN_ANNOTATIONS:
            yield Reference("own", f"annotation {name}: {value}")


def _data(spec: Object, namespace: str) -> Iterator[Reference]:
    source = spec.get("source") or {}
    named = [source.get(part) for part in ("pvc", "snapshot", "dataSource")] + [spec.get("sourceRef")]
    for reference in named:
        other = (reference or {}).get("namespace") or namespace
        if other != namespace:
            yield Reference("namespace", other)


def _kernel(spec: Object) -> Iterator[Reference]:
    firmware = (spec.get("domain") or {}).get("firmware") or {}
    image = ((firmware.get("kernelBoot") or {}).get("container") or {}).get("image") or ""
    if image.startswith("file:"):
        yield Reference("file", f"kernelBoot image {image}")


#: kinds by whose annotations plane and agent talk
_SPOKEN_BY = tuple(map(_key, (register.PERSISTENT_VOLUME_CLAIM, register.PERSISTENT_VOLUME, register.VOLUME_SNAPSHOT)))


class ReferenceGuard:
    """Asks the authorizer for each reference that a write adds."""

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    def check_write(self, user: User, resource: Resource, old: Object | None, new: Object | None) -> None:
        """Raises 403 for the first reference that the user may not make."""
        if new is None or _CONTROLLERS in user.groups or _NODES in user.groups:
            return
        added = references(resource, new) - (references(resource, old) if old is not None else set())
        for reference in sorted(added, key=lambda each: (each.kind, each.name)):
            if reference.kind == "namespace":
                asked = Attributes(
                    verb="create", group="cdi.kubevirt.io", resource="datavolumes/source", namespace=reference.name
                )
                why = f": to clone from namespace {reference.name} takes create on datavolumes/source there"
            else:
                asked = Attributes(verb="create", resource="persistentvolumes")
                why = f": {reference.name} is for administrators of the host's storage"
            if not self._authorizer.authorize(user, asked).allowed:
                raise forbidden(user, asked, why)

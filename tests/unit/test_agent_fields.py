"""No field of a VMI is dropped in silence: each that the kinds know is set alone and must change what a host makes.

`outcome` carries a VMI through everything that happens before a start, with stand-ins for network and storage, and
returns all that was made or asked for. A field that changes nothing must be refused by name (`REFUSED`) or stand in
`ELSEWHERE` with who honours it; and no entry of those tables may be stale.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgspec
import pytest
from tests.agent_stand_ins import CAPABILITIES, StandInHypervisor, StandInMaterials, StandInNetworks
from tests.fake_client import FakeClient

from stead.agent import bringup
from stead.agent.disks import Disks
from stead.agent.lookups import Lookups
from stead.agent.materials import RegistryAccess
from stead.agent.nets import Nets
from stead.agent.plan_fields import ELSEWHERE, REFUSED, check_honoured, struct_of
from stead.agent.prepared import NotReady, Unsupported
from stead.agent.workshop import AgentSettings, Workshop
from stead.client.contract import Object
from stead.kinds import register
from stead.kinds.machine import VirtualMachineInstanceSpec

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the agent gives files to machines' uids, which takes root")

DISKS = "domain.devices.disks"
NICS = "domain.devices.interfaces"

#: the instance in which each field is set alone: every list has one entry to hang it on
BASE: Object = {
    "domain": {
        "cpu": {"cores": 2, "sockets": 1},
        "memory": {"guest": "128Mi"},
        "firmware": {"bootloader": {"bios": {}}},
        "devices": {
            "disks": [
                {"name": "root", "disk": {"bus": "virtio"}, "serial": "abc"},
                {"name": "drive", "cdrom": {"bus": "sata"}},
            ],
            "interfaces": [{"name": "default", "masquerade": {}}],
        },
    },
    "networks": [{"name": "default", "pod": {}}],
    "volumes": [
        {"name": "root", "persistentVolumeClaim": {"claimName": "root"}},
        {"name": "drive", "cloudInitConfigDrive": {"userData": "#cloud-config\n"}},
        {"name": "licences", "secret": {"secretName": "text"}},
    ],
}

#: values where the type alone does not make a sensible one; the first that changes the outcome counts
VALUES: dict[str, list[Any]] = {
    "domain.cpu.model": ["qemu64"],
    "domain.cpu.features.name": ["avx2"],
    "domain.memory.hugepages.pageSize": ["2Mi"],
    "domain.memory.guest": ["256Mi"],
    "domain.memory.maxGuest": ["256Mi"],
    "domain.firmware.acpi.msdmNameRef": ["licences"],
    "domain.firmware.acpi.slicNameRef": ["licences"],
    "domain.ioThreadsPolicy": ["shared"],
    "domain.rebootPolicy": ["Terminate"],
    f"{NICS}.dhcpOptions.privateOptions": [[{"option": 240, "value": "x"}]],
    f"{NICS}.macAddress": ["02:00:00:00:00:77"],
    f"{NICS}.pciAddress": ["0000:81:00.1"],
    f"{NICS}.state": ["down"],
    f"{NICS}.bridge": [{}],
    f"{NICS}.ports.protocol": ["UDP"],
    "networks.pod.vmNetworkCIDR": ["10.9.0.0/24"],
    "networks.pod.vmIPv6NetworkCIDR": ["fd10:9::/120"],
    "networks.multus.networkName": ["other"],
    "architecture": ["arm64"],
    "accessCredentials.sshPublicKey.source.secret.secretName": ["keys"],
    "dnsConfig.nameservers": [["192.0.2.1"]],
    "domain.resources.requests": [{"memory": "64Mi"}],
    "domain.resources.limits": [{"memory": "1Gi"}],
}

#: what must be there besides for the field to mean something: (path of BASE, value)
_BRIDGED: list[tuple[str, Any]] = [(f"{NICS}.masquerade", None), (f"{NICS}.bridge", {})]
_ON_MULTUS: list[tuple[str, Any]] = [("networks.pod", None), ("networks.multus", {"networkName": "wire"})]
_KEYS: list[tuple[str, Any]] = [("accessCredentials.sshPublicKey.source.secret.secretName", "keys")]
BESIDES: dict[str, list[tuple[str, Any]]] = {
    "domain.resources.requests": [("domain.memory", {})],
    "domain.resources.limits": [("domain.memory", {})],
    "domain.ioThreads.supplementalPoolThreadCount": [("domain.ioThreadsPolicy", "supplementalPool")],
    f"{NICS}.bridge": _ON_MULTUS,
    "networks.multus": _BRIDGED,
    "accessCredentials.sshPublicKey.propagationMethod.configDrive": _KEYS,
    "accessCredentials.sshPublicKey.propagationMethod.noCloud": [
        *_KEYS,
        ("volumes", [{"name": "root", "cloudInitNoCloud": {"userData": "#cloud-config\n"}}, *BASE["volumes"][1:]]),
    ],
    "accessCredentials.sshPublicKey.source": [("accessCredentials.sshPublicKey.propagationMethod.configDrive", {})],
    "volumes.configMap.optional": [("volumes.configMap.name", "absent")],
    "volumes.secret.optional": [("volumes.secret.secretName", "absent")],
}  # fmt: skip


def samples(annotation: Any, path: str) -> list[Any]:
    """Values to try for a field of this type."""
    if path in VALUES:
        return VALUES[path]
    if get_origin(annotation) is Annotated:
        return samples(get_args(annotation)[0], path)
    members = [m for m in get_args(annotation) if m is not type(None)]
    if annotation is bool or bool in members:
        return [True, False]
    text = str(annotation)
    if "Literal" in text and members and all(isinstance(m, str) for m in get_args(members[0]) or members):
        return list(get_args(members[0]) or members)
    kind = next(
        (k for k in (int, str, list, dict) if k is annotation or k in [get_origin(m) or m for m in members]), str
    )
    for member in members:
        if get_origin(member) is Annotated:
            return samples(member, path)
    tries: dict[Any, list[Any]] = {int: [7], str: ["7", "Always"], list: [["7"]], dict: [{"a": "7"}]}
    return tries.get(get_origin(annotation) or kind, ["7"])


def leaves(kind: type, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field that holds a value of its own, with its type; a Struct without fields is one, too."""
    for field in msgspec.structs.fields(kind):
        full = f"{path}.{field.encode_name}" if path else field.encode_name
        inner = struct_of(field.type)
        if inner is not None and msgspec.structs.fields(inner):
            yield from leaves(inner, full)
        else:
            yield full, ({} if inner is not None else field.type)


LEAVES = dict(leaves(VirtualMachineInstanceSpec))


def required(kind: type) -> Object:
    """A Struct's least JSON."""
    made: Object = {}
    for field in msgspec.structs.fields(kind):
        if field.required:
            inner = struct_of(field.type)
            made[field.encode_name] = required(inner) if inner is not None else samples(field.type, "")[0]
    return made


def put(spec: Object, path: str, value: Any) -> Object:
    """A copy of `spec` with the field set; lists get it in their first entry, made if need be."""
    made: Object = msgspec.json.decode(msgspec.json.encode(spec))
    kind: type = VirtualMachineInstanceSpec
    node = made
    *parents, last = path.split(".")
    for name in parents:
        field = next(f for f in msgspec.structs.fields(kind) if f.encode_name == name)
        inner = struct_of(field.type)
        assert inner is not None
        kind = inner
        is_list = "list[" in str(field.type)
        if node.get(name) is None or (name == "downwardAPI" and not node[name]):
            node[name] = [required(inner)] if is_list else required(inner)
        node = node[name][0] if is_list else node[name]
    node[last] = value
    return made


SOURCES = {
    "cloudInitNoCloud", "cloudInitConfigDrive", "configMap", "containerDisk", "containerPath", "dataVolume",
    "downwardAPI", "downwardMetrics", "emptyDisk", "ephemeral", "hostDisk", "memoryDump", "persistentVolumeClaim",
    "secret", "serviceAccount", "sysprep",
}  # fmt: skip
#: where a part excludes others of its kind, the others are left out first
ALTERNATIVES: dict[str, set[str]] = {
    DISKS: {"disk", "cdrom", "lun"},
    NICS: {"masquerade", "bridge"},
    "volumes": SOURCES,
    "networks": {"pod", "multus"},
    "domain.firmware.bootloader": {"bios", "efi"},
    "domain.clock": {"utc", "timezone"},
    "domain.devices.watchdog": {"i6300esb", "diag288"},
}
#: the least of each source that can be made here
SOURCE_BASES: dict[str, Object] = {
    "persistentVolumeClaim": {"claimName": "root"},
    "dataVolume": {"name": "root"},
    "ephemeral": {"persistentVolumeClaim": {"claimName": "root"}},
    "containerDisk": {"image": "registry.test/a:1"},
    "emptyDisk": {"capacity": "1Mi"},
    "hostDisk": {"path": "{host}/made.img", "type": "DiskOrCreate", "capacity": "1Mi"},
    "secret": {"secretName": "text"},
    "configMap": {"name": "text"},
    "downwardAPI": {"fields": [{"path": "a", "fieldRef": {"fieldPath": "metadata.name"}}]},
    "serviceAccount": {"serviceAccountName": "default"},
    "sysprep": {"configMap": {"name": "answers"}},
    "cloudInitNoCloud": {},
    "cloudInitConfigDrive": {},
}
SOURCE_VALUES: dict[str, list[Any]] = {
    "claimName": ["other"], "dataVolume.name": ["other"], "image": ["registry.test/b:1"], "capacity": ["2Mi"],
    "path": ["{host}/other.img", "/disk/b.img"], "hostDisk.type": ["Disk"], "userDataBase64": ["Yg=="],
    "networkDataBase64": ["Yg=="], "secretRef": [{"name": "cloud"}], "networkDataSecretRef": [{"name": "cloud"}],
    "secretName": ["other", "absent"], "imagePullSecret": ["pull"], "fields.path": ["b"],
    "fieldRef": [{"fieldPath": "metadata.namespace"}], "configMap": [{"name": "other-answers"}],
    "secret": [{"name": "answers"}], "configMap.name": ["other"], "optional": [True], "serviceAccountName": ["robot"],
}  # fmt: skip


class Notes(StandInMaterials):
    """Materials that also note what was asked of them."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[Any] = []

    async def container_disk(self, image: str, pull_policy: str, access: RegistryAccess, path: str) -> Any:
        self.asked.append((image, pull_policy, access, path))
        return await super().container_disk(image, pull_policy, access, path)

    async def container_files(
        self, image: str, pull_policy: str, access: RegistryAccess, paths: tuple[str, ...]
    ) -> tuple[str, ...]:
        self.asked.append((image, pull_policy, access, paths))
        return await super().container_files(image, pull_policy, access, paths)

    async def empty(self, target: Path, size: int, owner: tuple[int, int]) -> None:
        self.asked.append(("empty", size))
        await super().empty(target, size, owner)


class Asked(FakeClient):
    """The API, noting which tokens were asked for."""

    tokens: list[str]

    async def create(self, resource: Any, obj: Object) -> Object:
        if resource.kind == "TokenRequest":
            self.tokens.append(obj["metadata"]["name"])
            return obj | {"status": {"token": "t"}}
        return await super().create(resource, obj)


class Bench:
    """A host on which instances are made ready, one after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client = Asked()
        (folder / "pool").mkdir()
        (folder / "host").mkdir()

    async def fill(self) -> None:
        def encoded(**data: str) -> Object:
            return {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}

        for name in ("root", "other"):
            pv = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"pv-{name}"}}
            await self.client.create(
                register.PERSISTENT_VOLUME, pv | {"spec": {"csi": {"driver": "stead.io", "volumeHandle": f"p/{name}"}}}
            )
            pvc = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "ns"}}
            await self.client.create(
                register.PERSISTENT_VOLUME_CLAIM,
                pvc | {"spec": {"accessModes": ["ReadWriteOnce"], "volumeName": f"pv-{name}"}},
            )
            bound = {"status": {"phase": "Bound"}}
            await self.client.patch(register.PERSISTENT_VOLUME_CLAIM, "ns", name, bound, subresource="status")
            path = self.folder / "pool" / name / "disk.img"
            path.parent.mkdir()
            path.write_bytes(b"\0" * 4096)
        secrets = {
            "text": {"a": "1"}, "other": {"a": "2"}, "pull": {"accessKeyId": "u", "secretKey": "p"},
            "cloud": {"userdata": "u", "networkdata": "n"}, "answers": {"autounattend.xml": "s"},
            "keys": {"k": "ssh-x"},
        }  # fmt: skip
        for name, data in secrets.items():
            metadata = {"name": name, "namespace": "ns"}
            secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": encoded(**data)}
            await self.client.create(register.SECRET, secret)
        maps = {
            "text": {"a": "1"}, "other": {"a": "2"}, "answers": {"autounattend.xml": "x"},
            "other-answers": {"unattend.xml": "y"},
        }  # fmt: skip
        for name, data in maps.items():
            metadata = {"name": name, "namespace": "ns"}
            await self.client.create(
                register.CONFIG_MAP, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
            )

    async def outcome(self, spec: Object) -> Any:
        """All that is made for an instance, or why nothing is."""
        self.client.tokens = []
        for left in (self.folder / "host").iterdir():
            left.unlink()
        materials, networks = Notes(self.folder / "pool"), StandInNetworks()
        settings = AgentSettings(
            instance="t", host_name="h", machines_dir=self.folder / "machines", run_dir=self.folder / "run",
            state_dir=self.folder / "state", host_disk_roots=(self.folder / "host",),
        )  # fmt: skip
        lookups = Lookups(self.client)
        disks = Disks(lookups, materials, settings.host_disk_roots)
        shop = Workshop(self.client, StandInHypervisor(), disks, Nets(lookups, networks), settings)
        shop.capabilities, shop.vsock = CAPABILITIES, True
        metadata = {
            "name": "web", "namespace": "ns", "uid": "u-1",
            "annotations": {"stead.io/addresses": '{"default":{"ipv4":"10.128.0.5","mac":"02:00:00:00:00:01"}}'},
        }  # fmt: skip
        vmi = {"metadata": metadata, "spec": msgspec.json.decode(
            msgspec.json.encode(spec).replace(b"{host}", str(self.folder / "host").encode()))}  # fmt: skip
        try:
            prepared = await bringup.prepare(shop, vmi)
            machine = bringup.plan(shop, vmi, prepared)
        except Unsupported as error:
            return ("refused", error.field, str(error))
        except NotReady as error:
            return ("not ready", error.reason, str(error))
        requests = [msgspec.json.encode(request) for request in networks.attached.values()]
        sizes = [v.size for v in prepared.volumes]
        return (
            "made",
            msgspec.json.encode(machine),
            materials.isos,
            materials.asked,
            requests,
            sizes,
            self.client.tokens,
        )


def base_for(path: str) -> Object:
    """BASE with everything that the field excludes left out, and all that it needs put in."""
    spec: Object = msgspec.json.decode(msgspec.json.encode(BASE))
    for prefix, kinds in ALTERNATIVES.items():
        if path.startswith(f"{prefix}."):
            mine = path.removeprefix(f"{prefix}.").split(".")[0]
            if mine in kinds:
                node: Any = spec
                for name in prefix.split("."):
                    node = node.setdefault(name, {})
                entry = node[0] if isinstance(node, list) else node
                for other in kinds - {mine} if path != f"{prefix}.{mine}" else kinds:
                    entry.pop(other, None)
                if prefix == "volumes" and path != f"{prefix}.{mine}":
                    entry[mine] = SOURCE_BASES.get(mine, {})
    for prefix, changes in BESIDES.items():
        if path == prefix or path.startswith(f"{prefix}."):
            for where, value in changes:
                spec = put(spec, where, value)
    return spec


def values_for(path: str) -> list[Any]:
    if path.startswith("volumes."):
        for end, given in SOURCE_VALUES.items():
            if path.endswith(f".{end}"):
                return given
    annotation = LEAVES[path]
    return [{}] if annotation == {} else samples(annotation, path)


def is_listed(path: str, table: dict[str, str]) -> bool:
    return any(path == entry or path.startswith(f"{entry}.") for entry in table)


def meant(path: str) -> bool:
    """Not part of a list's key (names, which hold an entry together)."""
    return not path.endswith(".name") or path.startswith("domain.cpu") or is_listed(path, REFUSED)


async def test_every_field_changes_what_is_made_or_is_refused_or_is_honoured_elsewhere(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.fill()
    dropped = []
    for path in LEAVES:
        if is_listed(path, ELSEWHERE) or not meant(path):
            continue
        base = base_for(path)
        before = await bench.outcome(base)
        if is_listed(path, REFUSED):
            refused = [await bench.outcome(put(base, path, value)) for value in values_for(path)]
            if not any(outcome[0] == "refused" for outcome in refused):
                dropped.append(f"{path}: listed as refused, and is not")
            continue
        after = [await bench.outcome(put(base, path, value)) for value in values_for(path)]
        if all(outcome == before for outcome in after):
            dropped.append(
                f"{path}: no effect of {values_for(path)} on {before[:3] if before[0] != 'made' else 'made'}"
            )
    assert not dropped, "\n".join(dropped)


def test_the_tables_name_fields_that_exist() -> None:
    known = set(LEAVES) | {path.rpartition(".")[0] for path in LEAVES}
    prefixes = {".".join(path.split(".")[:n]) for path in known for n in range(1, path.count(".") + 2)}
    free_maps = {"domain.resources.requests.cpu", "domain.resources.limits.cpu"}
    assert {*REFUSED, *ELSEWHERE} - prefixes - free_maps == set()
    assert not {*REFUSED} & {*ELSEWHERE}


def test_a_field_that_the_kinds_do_not_know_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"spec\.domain\.devices\.novelty"):
        check_honoured({"domain": {"devices": {"novelty": {"a": 1}}}})

"""Files that a guest finds on the small disks made for it: cloud-init, Secrets, ConfigMaps, downward API, sysprep.
Pure.

`disks.py` fetches the objects, calls these and writes an ISO. Layouts: cloud-init's NoCloud (label `cidata`) and
OpenStack ConfigDrive (label `config-2`), with the metadata that KubeVirt writes (instance id `<name>.<namespace>`,
stable over restarts; `public-keys` from access credentials). Bad base64 raises Unsupported with the field's path.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

import msgspec

from stead.agent import vmi as reading
from stead.agent.prepared import Unsupported

Object = dict[str, Any]
Files = dict[str, bytes]

NOCLOUD_LABEL = "cidata"
CONFIG_DRIVE_LABEL = "config-2"


class CloudInit(msgspec.Struct, frozen=True, kw_only=True):
    """What goes on a cloud-init disk. `network` is network-config (NoCloud) or network_data.json (ConfigDrive)."""

    user: bytes = b""
    network: bytes = b""
    ssh_keys: tuple[str, ...] = ()


def hostname(vmi: Object) -> str:
    """The guest's host name: `spec.hostname`, else the instance's name as a DNS label."""
    given = reading.spec(vmi).get("hostname")
    return str(given) if given else re.sub(r"[^a-z0-9-]", "-", reading.name(vmi).lower())[:63].strip("-")


def decode_base64(text: str, field: str) -> bytes:
    """Raises Unsupported with `field` when the text is not base64."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unsupported(field, "is not a valid base64 value") from error


def data_of(secret: Object) -> Files:
    """Decoded `data` (and `stringData`) of a Secret."""
    decoded = {key: base64.b64decode(value) for key, value in (secret.get("data") or {}).items()}
    decoded.update({key: value.encode() for key, value in (secret.get("stringData") or {}).items()})
    return decoded


def data_of_config_map(config_map: Object) -> Files:
    """`data` and decoded `binaryData` of a ConfigMap."""
    plain = {key: value.encode() for key, value in (config_map.get("data") or {}).items()}
    return plain | {key: base64.b64decode(value) for key, value in (config_map.get("binaryData") or {}).items()}


def nocloud_files(vmi: Object, data: CloudInit) -> Files:
    """`user-data`, `meta-data` and, if given, `network-config`."""
    metadata: Object = {"instance-id": _instance_id(vmi), "local-hostname": hostname(vmi)}
    instancetype = _instancetype(vmi)
    if instancetype:
        metadata["instance-type"] = instancetype
    if data.ssh_keys:
        metadata["public-keys"] = _numbered(data.ssh_keys)
    files = {"meta-data": _json(metadata), "user-data": data.user or b"#cloud-config\n"}
    if data.network:
        files["network-config"] = data.network
    return files


def config_drive_files(vmi: Object, data: CloudInit) -> Files:
    """`openstack/latest/{meta_data.json,user_data,network_data.json}`."""
    metadata: Object = {
        "instance_id": _instance_id(vmi),
        "local_hostname": hostname(vmi),
        "hostname": hostname(vmi),
        "uuid": str((reading.domain(vmi).get("firmware") or {}).get("uuid") or reading.uid(vmi)),
    }
    instancetype = _instancetype(vmi)
    if instancetype:
        metadata["instance_type"] = instancetype
    if data.ssh_keys:
        metadata["public_keys"] = _numbered(data.ssh_keys)
    tagged = _tagged_devices(vmi)
    if tagged:
        metadata["devices"] = tagged
    files = {
        "openstack/latest/meta_data.json": _json(metadata),
        "openstack/latest/user_data": data.user or b"#cloud-config\n",
    }
    if data.network:
        files["openstack/latest/network_data.json"] = data.network
    return files


def _instance_id(vmi: Object) -> str:
    return f"{reading.name(vmi)}.{reading.namespace(vmi)}"


def _instancetype(vmi: Object) -> str:
    annotations = vmi["metadata"].get("annotations") or {}
    for kind in ("instancetype", "cluster-instancetype"):
        if annotations.get(f"kubevirt.io/{kind}-name"):
            return str(annotations[f"kubevirt.io/{kind}-name"])
    return ""


def _numbered(keys: tuple[str, ...]) -> dict[str, str]:
    return {str(index): key for index, key in enumerate(keys)}


def _tagged_devices(vmi: Object) -> list[Object]:
    nics: list[Object] = [
        {"type": "nic", "mac": i.get("macAddress", ""), "tags": [i["tag"]]}
        for i in reading.devices(vmi).get("interfaces") or []
        if i.get("tag")
    ]
    disks: list[Object] = [
        {"type": "disk", "serial": d.get("serial", ""), "tags": [d["tag"]]}
        for d in reading.devices(vmi).get("disks") or []
        if d.get("tag")
    ]
    return nics + disks


def _json(value: Object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def ssh_keys_of(secret: Object) -> tuple[str, ...]:
    """Public keys in a Secret of access credentials, in the order of its keys; one value may hold several lines."""
    lines = [line.strip() for _, value in sorted(data_of(secret).items()) for line in value.decode().splitlines()]
    return tuple(line for line in lines if line and not line.startswith("#"))


def downward_files(vmi: Object, source: Object) -> Files:
    """Files of a downwardAPI volume: `fieldRef`s to the instance's name, namespace, uid, labels and annotations."""
    files: Files = {}
    for index, item in enumerate(source.get("fields") or source.get("items") or []):
        field = (item.get("fieldRef") or {}).get("fieldPath", "")
        files[str(item.get("path", f"field{index}"))] = _field_value(vmi, field).encode()
    return files


def _field_value(vmi: Object, field: str) -> str:
    metadata = vmi["metadata"]
    if field in ("metadata.name", "metadata.namespace", "metadata.uid"):
        return str(metadata.get(field.partition(".")[2], ""))
    for whole in ("labels", "annotations"):
        entries = metadata.get(whole) or {}
        if field == f"metadata.{whole}":
            return "".join(f"{key}={json.dumps(value)}\n" for key, value in sorted(entries.items()))
        match = re.fullmatch(rf"metadata\.{whole}\['([^']*)'\]", field)
        if match:
            return str(entries.get(match.group(1), ""))
    raise Unsupported("spec.volumes.downwardAPI", f"the field {field!r} is not known")


def sysprep_files(data: Files) -> Files:
    """An answer file under the name that Windows looks for, whatever the case of the key."""
    names = {"autounattend.xml": "Autounattend.xml", "unattend.xml": "Unattend.xml"}
    files = {names.get(key.lower(), key): value for key, value in data.items()}
    if not any(name in files for name in names.values()):
        raise Unsupported("spec.volumes.sysprep", "has neither Autounattend.xml nor Unattend.xml")
    return files

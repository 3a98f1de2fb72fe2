"""The published images of usual systems: where each vendor publishes them, and defaults for machines made from them.

Data and two pure functions, read by the command line. Nothing is contacted from here: an entry becomes a DataImportCron
and a DataSource only when a user adds it. Addresses are those of the KubeVirt project's curated container disks and of
the vendors' own cloud images.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

Object = dict[str, Any]

_CURATED = "docker://quay.io/containerdisks"
#: when digests are looked up: each at another minute of Tuesday morning, as a courtesy to the registry
_SCHEDULE = "{minute} 4 * * 2"


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """One system. `image` is a container disk (docker://…), `url` the vendor's cloud image (amd64), `user` its
    account.
    """

    name: str
    title: str
    image: str = ""
    url: str = ""
    checksum_url: str = ""
    user: str
    preference: str
    instancetype: str = "u1.medium"
    size: str = "30Gi"

    @property
    def origin(self) -> str:
        """Where it is imported from."""
        return self.image or self.url


def _ubuntu(version: str, preference: str = "ubuntu") -> Published:
    base = f"https://cloud-images.ubuntu.com/releases/{version}/release"
    return Published(
        name=f"ubuntu{version.replace('.', '')}", title=f"Ubuntu {version}", image=f"{_CURATED}/ubuntu:{version}",
        url=f"{base}/ubuntu-{version}-server-cloudimg-amd64.img", checksum_url=f"{base}/SHA256SUMS", user="ubuntu",
        preference=preference,
    )  # fmt: skip


def _debian(version: str, codename: str) -> Published:
    base = f"https://cloud.debian.org/images/cloud/{codename}/latest"
    return Published(
        name=f"debian{version}-cloud", title=f"Debian {version} ({codename})", image=f"{_CURATED}/debian:{version}",
        url=f"{base}/debian-{version}-genericcloud-amd64.qcow2", checksum_url=f"{base}/SHA512SUMS", user="debian",
        preference="debian",
    )  # fmt: skip


def _centos_stream(version: str) -> Published:
    base = f"https://cloud.centos.org/centos/{version}-stream/x86_64/images"
    image = f"CentOS-Stream-GenericCloud-{version}-latest.x86_64.qcow2"
    return Published(
        name=f"centos-stream{version}", title=f"CentOS Stream {version}", image=f"{_CURATED}/centos-stream:{version}",
        url=f"{base}/{image}", checksum_url=f"{base}/{image}.SHA256SUM", user="cloud-user",
        preference=f"centos.stream{version}",
    )  # fmt: skip


def _almalinux(version: str) -> Published:
    base = f"https://repo.almalinux.org/almalinux/{version}/cloud/x86_64/images"
    return Published(
        name=f"almalinux{version}", title=f"AlmaLinux {version}", image=f"{_CURATED}/almalinux:{version}",
        url=f"{base}/AlmaLinux-{version}-GenericCloud-latest.x86_64.qcow2", checksum_url=f"{base}/CHECKSUM",
        user="almalinux", preference=f"rhel.{version}",
    )  # fmt: skip


def _rocky(version: str) -> Published:
    base = f"https://dl.rockylinux.org/pub/rocky/{version}/images/x86_64"
    image = f"Rocky-{version}-GenericCloud-Base.latest.x86_64.qcow2"
    return Published(name=f"rocky{version}", title=f"Rocky Linux {version}", url=f"{base}/{image}",
                     checksum_url=f"{base}/{image}.CHECKSUM", user="rocky", preference=f"rhel.{version}")  # fmt: skip


PUBLISHED: tuple[Published, ...] = (
    _ubuntu("26.04"), _ubuntu("24.04"), _ubuntu("22.04"), _ubuntu("20.04"),
    _debian("13", "trixie"), _debian("12", "bookworm"), _debian("11", "bullseye"),
    Published(name="fedora", title="Fedora (newest)", image=f"{_CURATED}/fedora:latest", user="fedora",
              preference="fedora"),
    _centos_stream("10"), _centos_stream("9"),
    _almalinux("10"), _almalinux("9"),
    _rocky("10"), _rocky("9"),
    Published(name="opensuse-leap", title="openSUSE Leap 15.6", image=f"{_CURATED}/opensuse-leap:15.6", user="opensuse",
              preference="opensuse.leap"),
    Published(name="opensuse-tumbleweed", title="openSUSE Tumbleweed", image=f"{_CURATED}/opensuse-tumbleweed:latest",
              user="opensuse", preference="opensuse.tumbleweed"),
    Published(name="alpine", title="Alpine 3.22", user="alpine", preference="alpine", instancetype="u1.micro",
              size="5Gi",
              url="https://dl-cdn.alpinelinux.org/alpine/v3.22/releases/cloud/"
                  "nocloud_alpine-3.22.0-x86_64-bios-cloudinit-r0.qcow2"),
    Published(name="cirros", title="CirrOS (tests)", image="docker://quay.io/kubevirt/cirros-container-disk-demo:latest",
              user="cirros", preference="cirros", instancetype="u1.nano", size="1Gi"),
)  # fmt: skip


def find(name: str) -> Published | None:
    """The entry of that name; of a system's bare name (`ubuntu`) its newest release, which stands first."""
    exact = next((entry for entry in PUBLISHED if entry.name == name), None)
    release = re.compile(re.escape(name) + r"-?\d+(-cloud)?")
    return exact or next((entry for entry in PUBLISHED if release.fullmatch(entry.name)), None)


def labels(entry: Published) -> dict[str, str]:
    """What a DataSource carries so that machines take their defaults from it."""
    prefix = "instancetype.kubevirt.io/default-"
    return {f"{prefix}instancetype": entry.instancetype, f"{prefix}preference": entry.preference}


def objects(entry: Published, namespace: str) -> list[Object]:
    """The manifests that make an entry an image of this installation, in the order to apply them.

    A container disk is followed by a DataImportCron; a plain cloud image is imported once, by a DataVolume.
    """
    storage = {"resources": {"requests": {"storage": entry.size}}}
    meta: Object = {"name": entry.name, "namespace": namespace, "labels": labels(entry)}
    annotations = {"cdi.kubevirt.io/storage.bind.immediate.requested": "true"}
    if entry.image:
        template = {
            "metadata": {"annotations": annotations},
            "spec": {"source": {"registry": {"url": entry.image}}, "storage": storage},
        }
        minute = sum(entry.name.encode()) % 60
        spec: Object = {"schedule": _SCHEDULE.format(minute=minute), "managedDataSource": entry.name, "importsToKeep":
        2, "garbageCollect": "Outdated", "template": template}  # fmt: skip
        return [{"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataImportCron", "metadata": meta, "spec": spec}]
    volume = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {**meta, "annotations": annotations},
        "spec": {"source": {"http": {"url": entry.url}}, "storage": storage},
    }
    source = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataSource",
        "metadata": meta,
        "spec": {"source": {"pvc": {"name": entry.name, "namespace": namespace}}},
    }
    return [volume, source]

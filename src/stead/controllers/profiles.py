"""StorageProfiles and the CDIConfig's status: what CDI's clients read to learn how a storage class behaves.

Started by `controllers.start`; sole writer of both. One StorageProfile for each StorageClass, removed with it. What a
user puts into its `spec` overrides our table. Source: CDI's storageprofile controller and storagecapabilities table.
"""

from __future__ import annotations

from typing import Any

from stead.client.informer import Key
from stead.controllers.conditions import is_deleting, owner_reference, spec_of
from stead.controllers.disk_source import default_class
from stead.controllers.runner import Controller, Source, World, own_key
from stead.controllers.volume_needs import PROVISIONER
from stead.controllers.writes import create_if_absent, delete_if_there, write_status
from stead.kinds.register import CDI_CONFIG, STORAGE_CLASS, STORAGE_PROFILE

Object = dict[str, Any]

#: claimPropertySets by provisioner; ours offers files on one host
KNOWN: dict[str, list[Object]] = {
    PROVISIONER: [{"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem"}],
    "kubernetes.io/no-provisioner": [],
}


def profile_status(storage_class: Object, profile: Object | None) -> Object:
    """The effective profile of a class."""
    override = spec_of(profile)
    provisioner = storage_class.get("provisioner", "")
    status: Object = {
        "storageClass": storage_class["metadata"]["name"],
        "provisioner": provisioner,
        "claimPropertySets": override.get("claimPropertySets") or KNOWN.get(provisioner, []),
        "cloneStrategy": override.get("cloneStrategy") or "copy",
        "dataImportCronSourceFormat": override.get("dataImportCronSourceFormat") or "pvc",
    }
    if override.get("snapshotClass"):
        status["snapshotClass"] = override["snapshotClass"]
    return status


def config_status(config: Object, scratch: Object | None, upload_url: str, upload_ca: str) -> Object:
    """The CDIConfig's effective settings. Volumes of ours need no room beside the disk, hence overhead 0."""
    spec = spec_of(config)
    overhead = spec.get("filesystemOverhead") or {}
    status: Object = {
        "filesystemOverhead": {
            "global": overhead.get("global") or "0",
            "storageClass": overhead.get("storageClass") or {},
        },
        "preallocation": bool(spec.get("preallocation")),
        "scratchSpaceStorageClass": spec.get("scratchSpaceStorageClass")
        or (scratch or {"metadata": {"name": ""}})["metadata"]["name"],
        "importProxy": spec.get("importProxy") or {},
        "defaultPodResourceRequirements": spec.get("podResourceRequirements") or {},
    }
    url = spec.get("uploadProxyURLOverride") or upload_url
    if url:
        status["uploadProxyURL"] = url
    if upload_ca:
        status["uploadProxyCA"] = upload_ca
    return status


class Profiles:
    """The controller's hands. `upload_url`: host:port at which uploads are taken; `upload_ca`: PEM."""

    def __init__(self, world: World, *, upload_url: str = "", upload_ca: str = "") -> None:
        self._client = world.client
        self._upload = (upload_url, upload_ca)
        of = world.informers.of
        self._classes, self._profiles, self._configs = of(STORAGE_CLASS), of(STORAGE_PROFILE), of(CDI_CONFIG)

    def controllers(self) -> list[Controller]:
        """The values that `run_controller` runs."""
        profiles = (Source(self._classes, own_key), Source(self._profiles, own_key))
        configs = (Source(self._configs, own_key), Source(self._classes, lambda _: self._configs.keys()))
        return [
            Controller("profile", self.reconcile, profiles, workers=1),
            Controller("cdiconfig", self.reconcile_config, configs, workers=1),
        ]

    async def reconcile(self, key: Key) -> float | None:
        """One class and its profile."""
        storage_class, profile = self._classes.get(*key), self._profiles.get(*key)
        if storage_class is None:
            if profile is not None and not is_deleting(profile):
                await delete_if_there(self._client, STORAGE_PROFILE, profile)
            return None
        storage_class = {"apiVersion": STORAGE_CLASS.api_version, "kind": STORAGE_CLASS.kind, **storage_class}
        if profile is None:
            made: Object = {
                "apiVersion": STORAGE_PROFILE.api_version,
                "kind": STORAGE_PROFILE.kind,
                "metadata": {"name": key.name, "ownerReferences": [owner_reference(storage_class)]},
                "spec": {},
            }
            await create_if_absent(self._client, STORAGE_PROFILE, made)
            return None
        if is_deleting(profile):
            return None
        await write_status(self._client, STORAGE_PROFILE, profile, profile_status(storage_class, profile))
        return None

    async def reconcile_config(self, key: Key) -> float | None:
        """The status of one CDIConfig (there is one, named `config`)."""
        config = self._configs.get(*key)
        if config is None or is_deleting(config):
            return None
        scratch = default_class(self._classes.objects(), virt=False)
        await write_status(self._client, CDI_CONFIG, config, config_status(config, scratch, *self._upload))
        return None

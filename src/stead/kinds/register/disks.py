"""Kinds of disks and where they come from: CDI's."""

from __future__ import annotations

from stead.kinds import cdi
from stead.kinds.columns import AGE
from stead.kinds.register.shapes import CREATE_ONLY, custom_kind
from stead.kinds.resource import Column

_CDI_GROUP = "cdi.kubevirt.io"
DATA_VOLUME = custom_kind(
    _CDI_GROUP,
    "v1beta1",
    "DataVolume",
    "datavolumes",
    cdi.DataVolume,
    short_names=("dv", "dvs"),
    categories=("all",),
    status_subresource=True,
    columns=(
        Column("Phase", "string", ".status.phase"),
        Column("Progress", "string", ".status.progress"),
        Column("Restarts", "integer", ".status.restartCount"),
        AGE,
    ),
)
DATA_SOURCE = custom_kind(
    _CDI_GROUP,
    "v1beta1",
    "DataSource",
    "datasources",
    cdi.DataSource,
    short_names=("das",),
    categories=("all",),
)
DATA_IMPORT_CRON = custom_kind(
    _CDI_GROUP,
    "v1beta1",
    "DataImportCron",
    "dataimportcrons",
    cdi.DataImportCron,
    short_names=("dic", "dics"),
    categories=("all",),
    columns=(Column("Format", "string", ".status.sourceFormat"),),
)
STORAGE_PROFILE = custom_kind(
    _CDI_GROUP,
    "v1beta1",
    "StorageProfile",
    "storageprofiles",
    cdi.StorageProfile,
    namespaced=False,
    status_subresource=True,
)
CDI = custom_kind(
    _CDI_GROUP,
    "v1beta1",
    "CDI",
    "cdis",
    cdi.CDI,
    namespaced=False,
    short_names=("cdi", "cdis"),
    columns=(AGE, Column("Phase", "string", ".status.phase")),
)
CDI_CONFIG = custom_kind(_CDI_GROUP, "v1beta1", "CDIConfig", "cdiconfigs", cdi.CDIConfig, namespaced=False)
UPLOAD_TOKEN_REQUEST = custom_kind(
    "upload.cdi.kubevirt.io",
    "v1beta1",
    "UploadTokenRequest",
    "uploadtokenrequests",
    cdi.UploadTokenRequest,
    verbs=CREATE_ONLY,
    has_generation=False,
)

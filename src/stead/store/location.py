"""Where a store is: the SQLite file of this installation, or a cluster of etcd; and how it is opened.

Called by the composition root and by `stead store`. The only module beside the stores that knows both.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from stead import pki
from stead.config import ConfigError, Settings, check_store, etcd_of
from stead.store import etcd_format
from stead.store.contract import StoreFailure
from stead.store.etcd import FORMAT, EtcdStore
from stead.store.sqlite import SqliteStore


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """`members` (host:port) and `name` of a cluster's store with the files of its TLS; or `path` of a SQLite file.

    `path` of a cluster's store is the folder for a copy before a migration.
    """

    path: Path = Path()
    members: tuple[str, ...] = ()
    name: str = ""
    ca: Path = Path()
    certificate: Path = Path()
    key: Path = Path()

    def __str__(self) -> str:
        return f"etcd://{','.join(self.members)}/{self.name}" if self.members else str(self.path)


def of(settings: Settings, url: str | None = None) -> Location:
    """The store of the settings, or the one that `url` names beside it ("sqlite" = the file). Raises ConfigError."""
    store = settings.store if url is None else "" if url == "sqlite" else url
    check_store(store, settings)
    found = etcd_of(store)
    if found is None:
        return Location(path=settings.plane_dir / "store.db")
    members, name = found
    return Location(
        path=settings.plane_dir, members=members, name=name, ca=Path(settings.store_ca_file),
        certificate=Path(settings.store_certificate_file), key=Path(settings.store_key_file),
    )  # fmt: skip


async def open_store(place: Location, *, to_fill: bool = False) -> SqliteStore | EtcdStore:
    """Open it, brought to the newest format. Raises StoreFailure, ConfigError, `migrations.TooNew`.

    `to_fill`: everything in it will be replaced, so that its format and a filling that broke off do not matter.
    """
    if not place.members:
        return await SqliteStore.open(place.path)
    try:
        tls = pki.client_context(place.ca, pki.Pair(place.certificate, place.key))
    except OSError as error:  # an ssl.SSLError too
        raise ConfigError(f"TLS for {place} ({place.ca}, {place.certificate}, {place.key}): {error}") from error
    try:
        store = await EtcdStore.open(place.members, place.name, tls, to_fill=to_fill)
    except StoreFailure as error:
        raise StoreFailure(f"cannot open store {place}: {error}") from error
    if to_fill or store.meta.format == FORMAT:
        return store
    try:
        await etcd_format.migrate(store, place.path)
    finally:
        await store.close()
    return await EtcdStore.open(place.members, place.name, tls)

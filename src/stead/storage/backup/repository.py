"""A repository: opened with its key, read by anybody who has it. `session` writes to it, `restore` reads disks.

One `Repository` may be used by several threads as long as its store may; all calls block. The layout and the order in
which things are written and removed are in `docs/decisions/0030-backup-repository.md`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable

import msgspec
import zstandard

from stead.storage.backup import maps, packs, points
from stead.storage.backup.keys import BackupError, Keys
from stead.storage.backup.maps import DiskMap, Resolved
from stead.storage.backup.packs import PackInfo, Table
from stead.storage.backup.points import Point
from stead.storage.backup.store import ROOT, Counted, Store, content_name

FORMAT = 1
GRANULE_BYTES = 64 << 10
_ROOT_LIMIT = 64 << 10


class _Root(msgspec.Struct, rename="camel"):
    format_version: int
    id: str
    granule_bytes: int
    #: tells whether a key is this repository's; says nothing about the key
    key_check: str


class Repository:
    """See the module's prose."""

    def __init__(self, store: Counted, keys: Keys, identity: str, granule_bytes: int) -> None:
        self.store, self.keys, self.id, self.granule_bytes = store, keys, identity, granule_bytes

    @classmethod
    def create(cls, store: Store, secret: bytes, granule_bytes: int = GRANULE_BYTES) -> Repository:
        """Make a new one; BackupError Invalid when there is one already."""
        try:
            store.get(ROOT, _ROOT_LIMIT)
        except BackupError as error:
            if error.reason != "NotFound":
                raise
        else:
            raise BackupError("Invalid", "there is a backup repository already")
        identity = str(uuid.uuid4())
        root = _Root(FORMAT, identity, granule_bytes, Keys(secret, identity).check)
        store.put(ROOT, msgspec.json.encode(root))
        return cls.open(store, secret)

    @classmethod
    def open(cls, store: Store, secret: bytes) -> Repository:
        """BackupError NotFound, WrongKey, TooNew or Damaged."""
        try:
            root = msgspec.json.decode(store.get(ROOT, _ROOT_LIMIT), type=_Root)
        except msgspec.DecodeError as error:
            raise BackupError("Damaged", f"{ROOT} is damaged: {error}") from error
        if root.format_version > FORMAT:
            raise BackupError("TooNew", f"the repository was written by a newer release (format {root.format_version})")
        if not 4096 <= root.granule_bytes <= 1 << 20 or root.granule_bytes & (root.granule_bytes - 1):
            raise BackupError("Damaged", f"{ROOT} is damaged: granules of {root.granule_bytes} bytes")
        keys = Keys(secret, root.id)
        if keys.check != root.key_check:
            raise BackupError("WrongKey", "the key is not the one that this repository was made with")
        return cls(Counted(store), keys, root.id, root.granule_bytes)

    # objects -----------------------------------------------------------------------------------------------------

    def read_object(self, kind: str, name: str, limit: int) -> bytes:
        """A sealed object, proved by its name and its seal."""
        data = self.store.get(name, limit)
        if content_name(kind, data) != name:
            raise BackupError("Damaged", f"{name} is damaged: its content is not that of its name")
        return self.keys.unseal(kind, name, data)

    def write_object(self, kind: str, plain: bytes) -> str:
        """Seal and store; returns the name."""
        data = self.keys.seal(kind, plain)
        name = content_name(kind, data)
        self.store.put(name, data)
        return name

    def point(self, name: str) -> Point:
        """BackupError NotFound, Damaged."""
        return points.decode(name, self.read_object("points", name, points.POINT_LIMIT))

    def points(self) -> list[Point]:
        """All points, oldest first. One that goes meanwhile is left out."""
        found = []
        for name, _ in self.store.list("points"):
            try:
                found.append(self.point(name))
            except BackupError as error:
                if error.reason != "NotFound":
                    raise
        return sorted(found, key=lambda point: (point.time, point.name))

    def find_point(self, text: str) -> Point:
        """The one whose name begins so. BackupError NotFound or Invalid."""
        if len(text) < 4:
            raise BackupError("Invalid", f"{text!r} is too short to name a point: four digits at least")
        named = [name for name, _ in self.store.list("points") if name.partition("/")[2].startswith(text)]
        if not named:
            raise BackupError("NotFound", f"the repository has no point {text}")
        if len(named) > 1:
            raise BackupError("Invalid", f"{len(named)} points have names that begin with {text}")
        return self.point(named[0])

    def read_map(self, name: str) -> DiskMap:
        packed = self.read_object("maps", name, maps.MAP_LIMIT)
        return maps.decode(name, _inflate(name, packed, maps.MAP_LIMIT))

    def write_map(self, disk: DiskMap) -> str:
        return self.write_object("maps", zstandard.ZstdCompressor(level=1).compress(maps.encode(disk)))

    def resolve(self, name: str) -> Resolved:
        """Every granule of a disk."""
        return maps.resolve(name, self.read_map)

    # indexes -----------------------------------------------------------------------------------------------------

    def index_names(self) -> set[str]:
        return {name for name, _ in self.store.list("indexes")}

    def read_indexes(self, names: Iterable[str]) -> list[PackInfo]:
        """All packs that these name; an index that was replaced meanwhile is passed over."""
        found: list[PackInfo] = []
        for name in names:
            try:
                found += packs.decode_index(name, self.read_object("indexes", name, packs.INDEX_LIMIT))
            except BackupError as error:
                if error.reason != "NotFound":
                    raise
        return found

    def write_indexes(self, infos: list[PackInfo]) -> set[str]:
        return {self.write_object("indexes", text) for text in packs.encode_indexes(infos)}

    def load_table(self) -> tuple[Table, set[str]]:
        """Where everything is, and from which index objects. Read anew while they are being replaced."""
        for _ in range(5):
            names = self.index_names()
            table = Table(self.read_indexes(sorted(names)))
            if names <= self.index_names():
                return table, names
        raise BackupError("Busy", "the repository's indexes change all the time: is it being pruned again and again?")

    def adopt(self, wanted: set[bytes], indexed: Table) -> set[bytes]:
        """Index again those packs that no index names and that hold wanted granules. Returns what is still missing."""
        known = {pack.name for pack in indexed.packs}
        found: list[PackInfo] = []
        for name, _ in list(self.store.list("packs")):
            if not wanted:
                break
            if name in known:
                continue
            try:
                info = packs.read_trailer(self.keys, name, self.store.get(name, packs.PACK_LIMIT))
            except BackupError as error:
                if error.reason in ("NotFound", "Damaged"):
                    continue
                raise
            here = {entry.name for entry in info.entries} & wanted
            if here:
                found.append(info)
                wanted = wanted - here
        if found:
            self.write_indexes(found)
        return wanted


def _inflate(name: str, packed: bytes, limit: int) -> bytes:
    try:
        if zstandard.frame_content_size(packed) > limit:
            raise BackupError("Damaged", f"{name} is damaged: it claims to be larger than maps are")
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=limit)
    except zstandard.ZstdError as error:
        raise BackupError("Damaged", f"{name} is damaged: it cannot be decompressed") from error

"""What an image claims to be, read from its first bytes, and whether we let it in. Pure: bytes in, values out.

Called by the import worker (never by the agent itself) before any other program sees an image, and by the container
disk store. Everything from outside is hostile: a format is decided by magic number here and then named explicitly to
every program; files that refer to other files (backing files, external data files, multi-file vmdk extents) are
refused, as are encrypted ones and sizes beyond the volume's. Layouts: QEMU's docs/interop/qcow2.txt, VMware's Virtual
Disk Format 5.0, VirtualBox VDICore.h, Microsoft's VHD and VHDX specifications. Sentences follow CDI's (`Unable to
process data: …`).
"""

from __future__ import annotations

import struct

import msgspec

#: bytes from the start that `examine` wants (fewer only when the file is shorter)
HEAD_BYTES = 128 << 10
#: a virtual size that no disk of ours may have (QEMU's limit for raw is 2^63; ext4's for a file is 16 TiB)
MAX_VIRTUAL_BYTES = 16 << 40
#: formats `examine` can answer besides the compressions of `COMPRESSIONS` and `tar`
FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx", "iso")
COMPRESSIONS = ("gz", "xz", "zst", "bz2")

_MAGIC = (
    (b"\x1f\x8b", "gz"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zst"), (b"BZh", "bz2"),
    (b"QFI\xfb", "qcow2"), (b"KDMV", "vmdk"), (b"COWD", "vmdk-sparse1"), (b"# Disk DescriptorFile", "vmdk-descriptor"),
    (b"vhdxfile", "vhdx"), (b"conectix", "vpc"), (b"QED\0", "qed"), (b"LUKS\xba\xbe", "luks"),
)  # fmt: skip

# qcow2 incompatible feature bits
_QCOW2_CORRUPT, _QCOW2_DATA_FILE, _QCOW2_COMPRESSION, _QCOW2_EXTENDED_L2 = 1 << 1, 1 << 2, 1 << 3, 1 << 4
_QCOW2_DIRTY = 1 << 0
_QCOW2_KNOWN = _QCOW2_DIRTY | _QCOW2_CORRUPT | _QCOW2_DATA_FILE | _QCOW2_COMPRESSION | _QCOW2_EXTENDED_L2
_QCOW2_EXTENSION_DATA_FILE = 0x44415441
_QCOW2_EXTENSION_BACKING_FORMAT = 0xE2792ACA


class UnsafeImage(Exception):
    """The image is refused. `reason` is a word for conditions; the message a sentence for people; never retried."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Image(msgspec.Struct, frozen=True):
    """What an image's head says. `virtual_bytes` is -1 where only the file's end or length tells (raw, fixed vhd)."""

    format: str
    virtual_bytes: int = -1


class Qcow2Header(msgspec.Struct, frozen=True):
    """The fields of a qcow2 header that reading guest data needs; all checked and within bounds."""

    version: int
    virtual_bytes: int
    cluster_bits: int
    l1_entries: int
    l1_offset: int
    extended_l2: bool
    compression: str
    snapshots: int


def sniff(head: bytes) -> str:
    """A word for what the bytes are: a member of FORMATS or COMPRESSIONS, `tar`, or a format we refuse by name."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[64:68] == b"\x7f\x10\xda\xbe":
        return "vdi"
    if head[257:262] == b"ustar":
        return "tar"
    if head[0x8001:0x8006] == b"CD001":
        return "iso"
    return "raw"


def examine(head: bytes, limit_bytes: int = MAX_VIRTUAL_BYTES) -> Image:
    """Check the head of a (decompressed) image and say what it is, or raise UnsafeImage.

    `limit_bytes` is the size of the volume it goes to; a larger virtual disk is refused here, before data is moved.
    """
    kind = sniff(head)
    if kind == "qcow2":
        image = Image("qcow2", qcow2_header(head).virtual_bytes)
    elif kind == "vmdk":
        image = Image("vmdk", _vmdk(head))
    elif kind == "vdi":
        image = Image("vdi", _vdi(head))
    elif kind == "vpc":
        image = Image("vpc", _vpc(head))
    elif kind == "vhdx":
        image = Image("vhdx")
    elif kind in ("raw", "iso"):
        image = Image("raw")
    else:
        raise UnsafeImage("UnsupportedFormat", f"Unable to process data: image format {kind} is not supported")
    check_size(image.virtual_bytes, limit_bytes)
    return image


def check_size(virtual_bytes: int, limit_bytes: int) -> None:
    """Refuse a virtual size that is larger than the volume, in CDI's words."""
    if virtual_bytes > limit_bytes:
        raise UnsafeImage(
            "ImageTooLarge",
            f"Unable to process data: Virtual image size {virtual_bytes} is larger than the reported available storage "
            f"{limit_bytes}. A larger PVC is required.",
        )


def qcow2_header(head: bytes) -> Qcow2Header:
    """Parse and check a qcow2 header with its extensions (they lie in the first cluster)."""
    if len(head) < 72:
        raise _truncated("qcow2")
    (_, version, backing_offset, backing_size, cluster_bits, size, crypt, l1_entries, l1_offset, _refs, _ref_clusters,
     snapshots, _snapshot_offset) = struct.unpack(">4sIQIIQIIQQIIQ", head[:72])  # fmt: skip
    incompatible, length, compression = 0, 72, 0
    if version == 3:
        if len(head) < 104:
            raise _truncated("qcow2")
        incompatible, length = struct.unpack(">Q", head[72:80])[0], struct.unpack(">I", head[100:104])[0]
        compression = head[104] if length > 104 and len(head) > 104 else 0
    _check_qcow2_features(version, incompatible, crypt, backing_offset or backing_size)
    if not 9 <= cluster_bits <= 21:
        raise _malformed("qcow2", f"cluster size 2^{cluster_bits} is outside 2^9..2^21")
    _check_virtual("qcow2", size)
    extended = bool(incompatible & _QCOW2_EXTENDED_L2)
    if not 72 <= length <= (1 << cluster_bits):
        raise _malformed("qcow2", f"header length {length} does not fit a cluster")
    _check_qcow2_extensions(head[length : 1 << cluster_bits], length)
    span = 1 << (2 * cluster_bits - (4 if extended else 3))
    if l1_entries < -(-size // span) or l1_entries * 8 > 32 << 20:
        raise _malformed("qcow2", f"{l1_entries} L1 entries do not match a virtual size of {size}")
    if l1_offset % (1 << cluster_bits) or (size and not l1_offset):
        raise _malformed("qcow2", f"L1 table at {l1_offset} is not at a cluster")
    names = {0: "zlib", 1: "zstd"}
    if compression not in names or bool(compression) != bool(incompatible & _QCOW2_COMPRESSION):
        raise _malformed("qcow2", f"compression type {compression} is not known")
    return Qcow2Header(version, size, cluster_bits, l1_entries, l1_offset, extended, names[compression], snapshots)


def _check_qcow2_features(version: int, incompatible: int, crypt: int, backing: int) -> None:
    if version not in (2, 3):
        raise _malformed("qcow2", f"version {version} is not 2 or 3")
    if backing:
        raise UnsafeImage(
            "BackingFile",
            "Unable to process data: Image is invalid because it has a backing file; such images are refused",
        )
    if crypt:
        raise UnsafeImage("EncryptedImage", "Unable to process data: encrypted qcow2 images are not supported")
    if incompatible & _QCOW2_DATA_FILE:
        raise UnsafeImage("DataFile", "Unable to process data: Image is invalid because it has an external data file")
    if incompatible & _QCOW2_CORRUPT:
        raise _malformed("qcow2", "it is marked corrupt")
    if incompatible & ~_QCOW2_KNOWN:
        raise _malformed("qcow2", f"unknown incompatible features {incompatible & ~_QCOW2_KNOWN:#x}")


def _check_qcow2_extensions(data: bytes, start: int) -> None:
    position = 0
    while position + 8 <= len(data):
        kind, length = struct.unpack(">II", data[position : position + 8])
        if kind == 0:
            return
        if kind == _QCOW2_EXTENSION_DATA_FILE:
            raise UnsafeImage(
                "DataFile", "Unable to process data: Image is invalid because it has an external data file"
            )
        if kind == _QCOW2_EXTENSION_BACKING_FORMAT:
            raise UnsafeImage(
                "BackingFile", "Unable to process data: Image is invalid because it names a backing format"
            )
        position += 8 + length + (-length % 8)
    if position > len(data):
        raise _malformed("qcow2", f"a header extension runs past the first cluster (header length {start})")


def _vmdk(head: bytes) -> int:
    """Monolithic sparse or stream-optimised only: one extent, in this very file, no parent."""
    if len(head) < 512:
        raise _truncated("vmdk")
    version, _flags, capacity, _grain, descriptor_offset, descriptor_size = struct.unpack("<IIQQQQ", head[4:44])
    if version not in (1, 2, 3):
        raise _malformed("vmdk", f"version {version} is not known")
    start = descriptor_offset * 512
    if not descriptor_offset or start >= len(head):
        raise _malformed("vmdk", "its descriptor is not at the start of the file")
    text = head[start : start + min(descriptor_size * 512, 20 << 10)].split(b"\0")[0].decode("latin-1").lower()
    lines = [line.strip() for line in text.splitlines()]
    extents = [line for line in lines if line.split(" ")[0] in ("rw", "rdonly", "noaccess")]
    parent = [line for line in lines if line.startswith("parentcid") and line.split("=")[-1].strip() != "ffffffff"]
    if parent or any(line.startswith("parentfilenamehint") for line in lines):
        raise UnsafeImage(
            "BackingFile", "Unable to process data: Image is invalid because its vmdk descriptor names a parent"
        )
    if len(extents) != 1 or " sparse " not in extents[0] or "/" in extents[0] or "\\" in extents[0]:
        raise UnsafeImage(
            "MultiFileImage", "Unable to process data: a vmdk must hold its one sparse extent in the same file"
        )
    return _check_virtual("vmdk", capacity * 512)


def _vdi(head: bytes) -> int:
    if len(head) < 512:
        raise _truncated("vdi")
    version, _header, kind = struct.unpack("<III", head[68:80])
    if version != 0x00010001:
        raise _malformed("vdi", f"version {version:#x} is not 1.1")
    if kind not in (1, 2):
        raise UnsafeImage("BackingFile", f"Unable to process data: vdi image type {kind} depends on another file")
    return _check_virtual("vdi", struct.unpack("<Q", head[368:376])[0])


def _vpc(head: bytes) -> int:
    """A dynamic VHD begins with a copy of its footer; a fixed one has it only at the end (and sniffs as raw)."""
    if len(head) < 512:
        raise _truncated("vhd")
    kind = struct.unpack(">I", head[60:64])[0]
    if kind == 4:
        raise UnsafeImage("BackingFile", "Unable to process data: a differencing vhd depends on another file")
    if kind not in (2, 3):
        raise _malformed("vhd", f"disk type {kind} is not known")
    return _check_virtual("vhd", struct.unpack(">Q", head[48:56])[0])


def _check_virtual(name: str, size: int) -> int:
    if not 0 < size <= MAX_VIRTUAL_BYTES:
        raise _malformed(name, f"virtual size {size} is outside 1..{MAX_VIRTUAL_BYTES}")
    return size


def _truncated(name: str) -> UnsafeImage:
    return UnsafeImage("TruncatedImage", f"Unable to process data: {name} image is truncated within its header")


def _malformed(name: str, why: str) -> UnsafeImage:
    return UnsafeImage("MalformedImage", f"Unable to process data: {name} image is malformed: {why}")

"""The one file in a multipart/form-data body, streamed.

Called by `uploads`. Reads only what it must: the boundary, the headers of parts, the bytes of the first part that is a
file. Bounded: part headers of 16 KiB, and never more than a chunk and a boundary in memory. RFC 7578, RFC 2046 §5.1.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from email.message import Message

MAX_HEADER = 16 * 1024
MAX_BOUNDARY = 200


def boundary_of(content_type: str) -> bytes:
    """The boundary parameter. Raises ValueError."""
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise ValueError("request Content-Type isn't multipart/form-data with a boundary")
    if not 0 < len(boundary) <= MAX_BOUNDARY:
        raise ValueError("the multipart boundary has a bad length")
    return boundary.encode("latin-1")


async def file_part(body: AsyncIterator[bytes], content_type: str) -> AsyncIterator[bytes]:
    """The bytes of the first part named `file` or with a file name. Raises ValueError when there is none."""
    delimiter = b"\r\n--" + boundary_of(content_type)
    # A leading CRLF makes the first boundary look like every other one.
    pending = b"\r\n"
    found, inside = False, False
    async for chunk in body:
        pending += chunk
        while True:
            if inside:
                at = pending.find(delimiter)
                if at < 0:
                    keep = len(delimiter) - 1
                    if found and len(pending) > keep:
                        yield pending[:-keep]
                    pending = pending[-keep:]
                    break
                if found:
                    if at:
                        yield pending[:at]
                    return
                pending, inside = pending[at:], False
                continue
            at = pending.find(delimiter)
            if at < 0:
                if len(pending) > MAX_HEADER:
                    raise ValueError("no multipart boundary at the start of the body")
                break
            rest = pending[at + len(delimiter) :]
            if rest.startswith(b"--"):
                raise ValueError("the form holds no file")
            end = rest.find(b"\r\n\r\n")
            if end < 0:
                if len(rest) > MAX_HEADER:
                    raise ValueError("the headers of a form part are too long")
                break
            found, inside = _is_file(rest[:end]), True
            pending = rest[end + 4 :]
            # An empty part ends at once: its delimiter's CRLF is the one after the headers.
            pending = pending if not pending.startswith(delimiter[2:]) else b"\r\n" + pending
    if not found:
        raise ValueError("the form holds no file")
    raise ValueError("the form ends before its file does")


def _is_file(headers: bytes) -> bool:
    for line in headers.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            text = value.decode("latin-1").lower()
            return 'name="file"' in text or "filename=" in text
    return False

"""Splits a multipart answer into its parts while it arrives, without holding a part in memory."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from indexer.sources.dicomweb.failure import Failed

__all__ = ["Part", "boundary_of", "media_type", "split"]

_MAX_HEAD = 16 * 1024
_MAX_PREAMBLE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Part:
    """Marks the start of a part. media_type: lower case, without parameters; "" = not given."""

    media_type: str


def media_type(header: str) -> str:
    """The media type of a Content-Type header, lower case, without parameters."""
    return header.partition(";")[0].strip().lower()


def boundary_of(header: str) -> bytes | None:
    """The boundary of a Content-Type header; None when it has none, or an invalid one."""
    quoted = re.search(r';\s*boundary\s*=\s*(?:"([^"]*)"|([^\s;"]+))', header, re.IGNORECASE)
    boundary = (quoted[1] or quoted[2] or "") if quoted else ""
    # RFC 2046 has at most 70 characters.
    return boundary.encode() if re.fullmatch(r"[ -~]{0,199}[!-~]", boundary) else None


def split(chunks: Iterable[bytes], boundary: bytes) -> Iterator[Part | bytes]:
    """For each part a :class:`Part`, then its content in pieces (RFC 2046, section 5.1.1).

    At most as many bytes as a boundary has are held back. What follows the closing boundary is
    not read. Lines end with CR LF. Some servers send LF alone: all boundaries are then told by
    LF, if the first one ends with it.

    Raises:
        Failed: the answer ends before its closing boundary, or is no valid multipart.
    """
    # Until the first boundary has shown how lines end, either end will do.
    line_end = b"\n"
    delimiter = line_end + b"--" + boundary
    source = iter(chunks)
    # The first boundary may stand at the very beginning.
    held = bytearray(line_end)
    inside = False
    skipped = 0
    while True:
        at = held.find(delimiter)
        ready = max(0, len(held) - len(delimiter) + 1) if at < 0 else at
        if inside and ready:
            yield bytes(held[:ready])
        if not inside:
            skipped += ready
            if skipped > _MAX_PREAMBLE:
                raise Failed("the answer is not built as multipart")
        del held[:ready]
        if at < 0:
            held += _more(source)
            continue
        # ``held`` begins with the delimiter. Its line ends with "--", or with nothing but spaces.
        line = _line(held, source, len(delimiter), line_end if inside else None)
        if line is None:
            # The same bytes as a boundary, but inside an image.
            if inside:
                yield bytes(held[: len(line_end)])
            del held[: len(line_end)]
            continue
        if line == b"--":
            return
        del held[: len(delimiter) + len(line)]
        if not inside:
            line_end = b"\n" if held.startswith(b"\n") else b"\r\n"
            delimiter = line_end + b"--" + boundary
        yield Part(_head(held, source, line_end))
        inside = True


def _line(
    held: bytearray, source: Iterator[bytes], start: int, line_end: bytes | None
) -> bytes | None:
    """The rest of a boundary's line: "--" if it is the last, else spaces; None = no boundary.

    Args:
        line_end: what ends the line; None = CR LF or LF.
    """
    while True:
        rest = bytes(held[start : start + 256])
        if rest.startswith(b"--"):
            return b"--"
        spaces = re.match(rb"[ \t]*", rest)
        end = rest[spaces.end() :] if spaces else rest
        if end.startswith((b"\r\n", b"\n") if line_end is None else line_end):
            return rest[: len(rest) - len(end)]
        if len(rest) >= 256 or end not in (b"", b"\r", b"-"):
            return None
        held += _more(source)


def _head(held: bytearray, source: Iterator[bytes], line_end: bytes) -> str:
    """Removes the header lines of a part from ``held``; returns its media type."""
    # There may be no header lines: then the empty line follows the boundary directly.
    while (end := held.find(2 * line_end)) < 0:
        if len(held) > _MAX_HEAD:
            raise Failed("a part of the answer has too long a head")
        held += _more(source)
    if end > _MAX_HEAD:
        raise Failed("a part of the answer has too long a head")
    lines = bytes(held[:end]).decode("latin-1").split(line_end.decode())
    del held[: end + 2 * len(line_end)]
    found = ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-type":
            found = media_type(value)
    return found


def _more(source: Iterator[bytes]) -> bytes:
    data = next(source, None)
    if data is None:
        raise Failed("the answer broke off", passing=True)
    return data

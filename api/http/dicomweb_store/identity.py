"""Reads from the first bytes of a file which instance it is, of which class and study.

The data set says it. File meta information says it too, but is often left as it was when a file was
copied and changed: instances would take each other's place.
"""

import io
import re
import zlib
from collections.abc import Container
from dataclasses import dataclass

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from api.http.dicomweb_store.refusals import NO_UID, NOT_DEFLATED, NOT_DICOM, TOO_DEEP, Refusal
from engine.errors import ImageRefused
from indexer.files.dicom_structure import (
    Encoding,
    find_dataset,
    has_preamble,
    starts_like_dicom,
)
from indexer.imaging.dataset import parse_dataset
from indexer.sources.dicomweb.spool import sop_of

__all__ = ["FIRST_BYTES", "MOST_BYTES", "Identity", "identity_of"]

FIRST_BYTES = 8 * 1024
"""What most instances have in front of their Study Instance UID …"""
MOST_BYTES = 1024**2
"""… and where it has to begin."""

_CLASS, _INSTANCE, _STUDY = 0x00080016, 0x00080018, 0x0020000D
_UID = re.compile(r"[0-9][0-9.]{0,63}")


class _Beyond(Container[int]):
    """The tags behind the last one that is of interest: elements come in ascending order."""

    def __contains__(self, tag: object) -> bool:
        return isinstance(tag, int) and tag > _STUDY


@dataclass(frozen=True, slots=True)
class Identity:
    """An instance. study: "" = none was found. syntax: UID of its transfer syntax. start: where in
    the file the data set starts. differs: the file meta information names another one."""

    sop_class: str
    sop: str
    study: str
    syntax: str
    start: int
    differs: bool


def identity_of(head: bytes, max_nesting: int, *, complete: bool) -> Identity | Refusal | None:
    """Which instance a file is that begins like this; None = more of it is needed to tell.

    Args:
        complete: nothing follows, or nothing that will be looked at.
    """
    fp = io.BytesIO(head)
    if not complete and len(head) < FIRST_BYTES:
        return None
    if not has_preamble(fp) and not starts_like_dicom(fp, len(head)):
        return NOT_DICOM
    encoding = find_dataset(fp)
    if not complete and encoding.start + 12 > len(head):
        return None
    deflated = encoding.syntax == DeflatedExplicitVRLittleEndian
    content, inner = head, encoding
    if deflated:
        try:
            # What follows in the stream is not needed, and may not be there yet.
            unpacked = zlib.decompressobj(-zlib.MAX_WBITS)
            content = unpacked.decompress(head[encoding.start :], MOST_BYTES)
        except zlib.error:
            return NOT_DEFLATED
        inner = Encoding(0, encoding.syntax, False, True)
    try:
        parsed = parse_dataset(
            io.BytesIO(content),
            len(content),
            inner,
            {_CLASS, _INSTANCE, _STUDY},
            _Beyond(),
            max_nesting,
        )
    except ImageRefused:
        return TOO_DEEP
    if parsed.head is None and not complete:
        return None

    def uid(tag: int) -> str:
        raw = parsed.header.get_item(tag)
        value = getattr(raw, "value", None)
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else ""
        text = text.strip(" \0")
        return text if _UID.fullmatch(text) else ""

    sop_class, sop = uid(_CLASS), uid(_INSTANCE)
    named = sop_of(head)
    if not (sop_class and sop):
        # Of a data set that is out of order; without one there is nothing to be named.
        if parsed.head is None or named is None or not _UID.fullmatch(encoding.sop_class):
            return NO_UID
        sop_class, sop = sop_class or encoding.sop_class, sop or named
    return Identity(
        sop_class,
        sop,
        uid(_STUDY),
        _syntax_of(encoding),
        encoding.start,
        named not in (None, sop) or encoding.sop_class not in ("", sop_class),
    )


def _syntax_of(encoding: Encoding) -> str:
    """As the file names it; without a name, as the data set was found to be written."""
    if encoding.syntax is not None:
        return str(encoding.syntax)
    if encoding.implicit:
        return str(ImplicitVRLittleEndian)
    return str(ExplicitVRLittleEndian if encoding.little_endian else ExplicitVRBigEndian)

"""Reads of which SOP class an instance is, from the first elements of its file."""

from typing import BinaryIO

from indexer.files.dicom_structure import UNDEFINED, find_dataset, read_head

__all__ = ["read_sop_class"]

_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
_LONGEST_UID = 64
_MOST_ELEMENTS = 64


def read_sop_class(fp: BinaryIO) -> tuple[str, str] | None:
    """SOP Class UID and SOP Instance UID as the file's data set has them; None = it has not both
    where they belong, or is no DICOM file whose data set can be read without unpacking it."""
    encoding = find_dataset(fp)
    found: dict[int, str] = {}
    position = encoding.start
    for _ in range(_MOST_ELEMENTS):
        head = read_head(fp, position, encoding.implicit, encoding.little_endian)
        # Elements come in ascending order (PS3.5, 7.1).
        if head is None or head.tag > _SOP_INSTANCE or head.length == UNDEFINED:
            break
        if head.tag in (_SOP_CLASS, _SOP_INSTANCE) and head.length <= _LONGEST_UID:
            fp.seek(head.value)
            found[head.tag] = fp.read(head.length).decode("ascii", "replace").strip(" \0")
        position = head.value + head.length
    if len(found) < 2:
        return None
    return found[_SOP_CLASS], found[_SOP_INSTANCE]

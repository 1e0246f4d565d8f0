"""Reads values of a DICOM header; an invalid value counts as absent."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import BaseTag, Tag

__all__ = ["integer", "items", "number", "numbers", "representation", "text", "value"]


def value(dataset: Dataset, keyword: str) -> Any:
    """The value of ``keyword``; None when it is absent or its bytes do not fit its VR."""
    tag = _tag(keyword)
    try:
        # Asked first: most elements are absent, and pydicom takes long to say so by an error.
        return dataset[tag].value if tag in dataset else None
    except (RecursionError, MemoryError):
        raise
    except Exception:
        # pydicom converts on access, and what it raises depends on the VR and the bytes.
        return None


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def representation(dataset: Dataset, keyword: str) -> str:
    """The VR that the value of ``keyword`` was read with; "" when it is absent or invalid."""
    if value(dataset, keyword) is None:
        return ""
    return str(dataset[_tag(keyword)].VR)


def _first(dataset: Dataset, keyword: str) -> Any:
    found = value(dataset, keyword)
    if isinstance(found, (str, bytes, int, float)) or not hasattr(found, "__getitem__"):
        return found
    return found[0] if len(found) else None


def text(dataset: Dataset, keyword: str) -> str:
    """The first value of ``keyword`` as text without padding, "" when there is none."""
    found = _first(dataset, keyword)
    return "" if found is None or isinstance(found, bytes) else str(found).strip(" \0\r\n\t")


def number(dataset: Dataset, keyword: str) -> float | None:
    """The first value of ``keyword`` as a finite number; None when there is none."""
    try:
        found = float(_first(dataset, keyword))
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """The values of ``keyword`` as finite numbers; empty when it is absent or one is none."""
    found = value(dataset, keyword)
    several = hasattr(found, "__iter__") and not isinstance(found, (str, bytes))
    try:
        read = [float(part) for part in (found if several else [found])]
    except (TypeError, ValueError, OverflowError):
        return []
    return read if all(map(math.isfinite, read)) else []


def integer(dataset: Dataset, keyword: str) -> int | None:
    """The first value of ``keyword`` as a whole number; None when there is none."""
    found = number(dataset, keyword)
    return int(found) if found is not None and found.is_integer() else None


def items(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    """The items of the sequence ``keyword``; empty when it is absent or no sequence."""
    found = value(dataset, keyword)
    return found if isinstance(found, DicomSequence) else ()

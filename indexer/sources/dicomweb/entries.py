"""Reads the entries of a search in DICOM JSON (PS3.18, annex F), whatever stands in them."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from indexer.sources.dicomweb.address import is_uid

__all__ = ["Entry", "count_of", "name_of", "value_of"]

Entry = Mapping[str, Any]


def value_of(entry: Entry, tag: str) -> str:
    """The first value of an element; "" when there is none, or it is no text."""
    value = _first(entry, tag)
    return value.rstrip("\0 ") if isinstance(value, str) else ""


def count_of(entry: Entry, tag: str) -> int:
    """The first value of an integer string (IS), which some servers write as text; 0 = none."""
    value = _first(entry, tag)
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value) if len(value) < 12 else 0
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def name_of(entry: Entry, tag: str) -> str:
    """The UID of an entry; for an invalid one "invalid-" and a digest, which does not reveal it: of
    what stands in its place, or of the whole entry where nothing does."""
    uid = value_of(entry, tag)
    if is_uid(uid):
        return uid
    said = uid if tag in entry else json.dumps(entry, sort_keys=True, default=str)
    return "invalid-" + hashlib.sha256(said.encode("utf-8", "replace")).hexdigest()[:32]


def _first(entry: Entry, tag: str) -> object:
    element = entry.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None

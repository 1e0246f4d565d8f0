"""Versions of small stored documents: one without a version is of the first format."""

from collections.abc import Mapping
from typing import Any

__all__ = ["later_format"]


def later_format(document: Mapping[str, Any], place: str, latest: int = 1) -> str | None:
    """Why a document cannot be read, as an error says it; None = its "format" is known.

    Args:
        document: without "format" it is of the first one.
        place: what the document is called in the error.
        latest: the latest format that this version knows.
    """
    found = document.get("format", 1)
    if isinstance(found, int) and 1 <= found <= latest:
        return None
    return (
        f"{place} was written by a later version of Precedent (its format is {found}, this version "
        f"knows up to {latest}); install that version or a later one"
    )

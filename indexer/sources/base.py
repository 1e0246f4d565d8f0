"""What the pipeline asks of a source of instances."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

__all__ = ["Discovered", "ImageSource", "file_locator", "file_path"]


@dataclass(frozen=True, slots=True)
class Discovered:
    """An instance that a source has.

    locator: URI, the same at every discovery. size: bytes. modified: an opaque stamp that
    changes when the content does. label: a class the source knows for it.
    """

    locator: str
    size: int
    modified: int
    label: str | None = None


class ImageSource(Protocol):
    """Where instances come from."""

    @property
    def name(self) -> str:
        """A short word for the kind of source; it becomes the payload's ``source``."""
        ...

    def instances(self) -> Iterator[Discovered]:
        """All instances, each once, without reading them."""
        ...


def file_locator(path: Path) -> str:
    """The file URI of an absolute path. Names that are no valid UTF-8 keep their bytes."""
    return "file://" + quote_from_bytes(os.fsencode(path))


def file_path(locator: str) -> Path:
    """The path that :func:`file_locator` described."""
    return Path(os.fsdecode(unquote_to_bytes(urlsplit(locator).path)))

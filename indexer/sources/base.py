"""What the pipeline asks of a source of instances."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

from engine.errors import ImageRefused

__all__ = [
    "Discovered",
    "Image",
    "ImageSource",
    "ZipMember",
    "file_locator",
    "file_path",
    "is_file",
    "shown",
]


@dataclass(frozen=True, slots=True)
class Discovered:
    """An instance that a source has.

    locator: URI, the same at every discovery. size: bytes, 0 when not known. modified: an
    opaque stamp that changes when the content does. label: a class the source knows for it.
    """

    locator: str
    size: int
    modified: int
    label: str | None = None


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A file inside a zip archive. name: as the archive's directory has it."""

    archive: Path
    name: str


Image = Path | bytes | ZipMember
"""Where the reading processes find the content of an instance: in a file, here, or packed."""


class ImageSource(Protocol):
    """Where instances come from."""

    @property
    def name(self) -> str:
        """A short word for it; it becomes the payload's ``source``."""
        ...

    def instances(self) -> Iterator[Discovered]:
        """All instances, each once, without reading them.

        Raises:
            SourceError: it cannot be reached.
        """
        ...

    def images(self, locators: Iterable[str]) -> Iterator[Image | ImageRefused]:
        """The content of each of these instances, or why there is none, in order.

        A bounded number of locators is taken ahead.

        Raises:
            SourceError: it cannot be reached, so that nothing can be said of any instance.
        """
        ...


def file_locator(path: Path) -> str:
    """The file URI of an absolute path. Names that are no valid UTF-8 keep their bytes."""
    return "file://" + quote_from_bytes(os.fsencode(path))


def is_file(locator: str) -> bool:
    """Whether :func:`file_locator` made it."""
    return locator.startswith("file://")


def file_path(locator: str) -> Path:
    """The path that :func:`file_locator` described."""
    return Path(os.fsdecode(unquote_to_bytes(urlsplit(locator).path)))


def shown(locator: str) -> str:
    """What a person is shown of an instance: its path, "archive.zip!member", or the URL itself."""
    if locator.partition(":")[0] not in ("file", "zip+file"):
        return locator
    location, packed, name = locator.partition("#")
    path = str(file_path(location))
    inner = unquote_to_bytes(name).decode("utf-8", "surrogateescape")
    return f"{path}!{inner}" if packed else path

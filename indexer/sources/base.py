"""The protocol of sources, from which the pipeline reads instances."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from engine.errors import ImageRefused
from indexer.files.locators import Image

__all__ = ["Discovered", "ImageSource"]


@dataclass(frozen=True, slots=True)
class Discovered:
    """An instance that a source has.

    locator: URI, the same at every discovery. size: bytes; 0 = not known. modified: an opaque
    stamp that changes when the content does. label: the instance's class, if the source has one.
    """

    locator: str
    size: int
    modified: int
    label: str | None = None


class ImageSource(Protocol):
    """A source of instances."""

    @property
    def name(self) -> str:
        """A short name, stored as ``source`` with each point."""
        ...

    def instances(self) -> Iterator[Discovered]:
        """All instances, each once, without reading their content.

        Raises:
            SourceError: the source cannot be reached.
        """
        ...

    def images(self, locators: Iterable[str]) -> Iterator[Image | ImageRefused]:
        """The content of each of these instances, or a refusal, in order.

        Takes a bounded number of locators ahead.

        Raises:
            SourceError: the source as a whole cannot be reached, so no instance can be refused.
        """
        ...

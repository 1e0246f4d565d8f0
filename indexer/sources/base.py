"""What every source of instances offers: the protocol that the pipeline reads from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from engine.errors import ImageRefused
from indexer.files.locators import Image

__all__ = ["Discovered", "ImageSource"]


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

"""What keeps small files by name, whole or not at all."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Kept", "ObjectStore"]


@dataclass(frozen=True, slots=True)
class Kept:
    """What is left of objects that were deleted. versions: earlier versions of them; None = it
    cannot be told. why: in a few words; "" = nothing is left."""

    versions: int | None = 0
    why: str = ""


class ObjectStore(Protocol):
    """Objects by their names, which have slashes in them as paths do.

    An object is there whole or not at all, whenever a process that puts it dies. Whoever puts one
    records that it is there afterwards, never before. All methods may be called by many threads.
    """

    @property
    def place(self) -> str:
        """Where the objects lie, for people."""

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Puts these objects, each in place of one that has its name; all of them are there when
        this returns.

        Raises:
            StorageError, OSError: it cannot be done; some of them may be there.
        """

    def get(self, name: str) -> bytes | None:
        """What an object has; None = there is none of this name.

        Raises:
            StorageError, OSError: it cannot be told, or is not what was put.
        """

    def existing(self, names: Collection[str]) -> set[str]:
        """Which of these there are. Raises StorageError, OSError: it cannot be told."""

    def delete(self, names: Collection[str]) -> None:
        """Removes these, as far as they are there.

        Raises:
            StorageError, OSError: it cannot be done; some of them may be gone.
        """

    def names(self) -> Iterator[str]:
        """The names of all. Raises StorageError, OSError: they cannot be told."""

    def purge(self, names: Collection[str]) -> Kept:
        """Removes what is left of objects that were deleted: parts of ones with these names that
        were being put, and earlier versions of all; what cannot be removed.

        Raises:
            StorageAway, OSError: the store does not answer.
        """

    def close(self) -> None:
        """Lets connections go."""

"""The slices of a series that a command is given: files one by one, or folders of them."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ImageRefused, QueryError
from engine.search.representative import evenly_spaced
from indexer.archive import QueryImage, QueryReader

__all__ = ["MOST_READ", "Slices", "read_slices"]

MOST_READ = 64
"""Most files that are read; of more, these, evenly spaced in the order of their names."""


@dataclass(frozen=True, slots=True)
class Slices:
    """images: those that were read. in_all: about how many there are.
    refused: a file that was named and cannot be used, and why; None = all can."""

    images: list[QueryImage]
    in_all: int
    refused: tuple[Path, ImageRefused] | None = None


def read_slices(reader: QueryReader, given: Sequence[Path]) -> Slices:
    """The images of these files, and of the files below these folders.

    What is no image is passed over where it lies in a folder, as other things do on a disc from a
    PACS; a file that was named has to be one.

    Raises:
        QueryError: a folder has no image that can be used.
    """
    paths = [path for one in given for path in _files(one)]
    chosen = evenly_spaced(paths, MOST_READ)
    named = set(given)
    images: list[QueryImage] = []
    first: tuple[Path, ImageRefused] | None = None
    for path, result in zip(chosen, reader.read(chosen), strict=True):
        if isinstance(result, QueryImage):
            images.append(result)
        elif path in named:
            return Slices([], 0, (path, result))
        else:
            first = first or (path, result)
    if first is not None and not images:
        raise QueryError(
            f"none of the {len(chosen)} files read can be used; {first[0]}: {first[1]}; give the "
            "files of a series"
        )
    return Slices(images, len(paths) - len(chosen) + len(images))


def _files(given: Path) -> list[Path]:
    # Where Path.is_dir raises (name too long, no permission) the reader says what is wrong.
    if not os.path.isdir(given):  # noqa: PTH112
        return [given]
    found = sorted((one for one in given.rglob("*") if one.is_file()), key=_by_numbers)
    if not found:
        raise QueryError(f"{given} has no files; give the files of a series")
    return found


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """Sort key by which slice 10 comes after slice 9."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]

"""Files in folders."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.errors import QueryError
from indexer.sources.base import Discovered, file_locator

__all__ = ["FolderSource"]


class FolderSource:
    """All files below some folders, and files named one by one.

    Links to folders are followed, but no folder is entered twice. What cannot be looked at
    is reported like a file, so that the reader refuses it and it is accounted for.

    Args:
        paths: folders and files.
        leave_out: a folder that is passed over (the data folder may lie in the archive).
        label_from_folder: a file's label is the name of the folder it lies in.

    Raises:
        QueryError: a path does not exist.
    """

    name = "folder"

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        leave_out: Path | None = None,
        label_from_folder: bool = False,
    ) -> None:
        for path in paths:
            if not os.path.lexists(path):
                raise QueryError(f"{path} does not exist; name folders or files to index")
        self._paths = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - keeps links
        self._leave_out = leave_out
        self._label = label_from_folder

    def instances(self) -> Iterator[Discovered]:
        """All files, folder by folder in the order of their names."""
        entered: set[tuple[int, int]] = set()
        # Looked up only now: it may have been made since.
        if self._leave_out is not None and (left_out := _identity(self._leave_out)):
            entered.add(left_out)
        given: set[Path] = set()
        for path in self._paths:
            # os.path.isdir answers where Path.is_dir raises: a name too long, a closed folder.
            if os.path.isdir(path):  # noqa: PTH112
                yield from self._walk(path, entered, given)
            elif path not in given and _identity(path.parent) not in entered:
                given.add(path)
                yield self._discovered(path)

    def _walk(
        self, top: Path, entered: set[tuple[int, int]], given: set[Path]
    ) -> Iterator[Discovered]:
        folders = [top]
        while folders:
            folder = folders.pop()
            identity = _identity(folder)
            if identity in entered:
                continue
            if identity is not None:
                entered.add(identity)
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                yield self._discovered(folder)
                continue
            inner = []
            for entry in entries:
                path = folder / entry.name
                if os.path.isdir(path):  # noqa: PTH112
                    inner.append(path)
                elif path not in given:
                    yield self._discovered(path)
            folders.extend(reversed(inner))

    def _discovered(self, path: Path) -> Discovered:
        label = _printable(path.parent.name) if self._label else None
        try:
            status = path.stat()
        except OSError:
            return Discovered(file_locator(path), 0, 0, label)
        return Discovered(file_locator(path), status.st_size, status.st_mtime_ns, label)


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _printable(name: str) -> str:
    """The name in valid Unicode: file systems take any bytes, the index does not."""
    return os.fsencode(name).decode("utf-8", "replace")

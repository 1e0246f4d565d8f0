"""Objects as files of a folder."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from engine.files import write_atomically
from indexer.objects.base import Kept

__all__ = ["FolderObjects"]


class FolderObjects:
    """The files of a folder, which is made when something is first put into it.

    They survive a kill, but not each of them a power cut: that would be slow for many small files.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def place(self) -> str:
        return str(self._root)

    def put(self, objects: Mapping[str, bytes]) -> None:
        for name, data in objects.items():
            path = self._root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data, durable=False)

    def get(self, name: str) -> bytes | None:
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None

    def existing(self, names: Collection[str]) -> set[str]:
        return {name for name in names if (self._root / name).exists()}

    def delete(self, names: Collection[str]) -> None:
        for name in names:
            (self._root / name).unlink(missing_ok=True)

    def names(self) -> Iterator[str]:
        for path in sorted(self._root.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                yield path.relative_to(self._root).as_posix()

    def purge(self, names: Collection[str]) -> Kept:
        paths = [self._root / name for name in names]
        beginnings = {f".{path.name}" for path in paths}
        for folder in {path.parent for path in paths}:
            for left in folder.glob(".*"):
                if left.name.rpartition("-")[0] in beginnings:
                    left.unlink(missing_ok=True)
        return Kept()

    def close(self) -> None:
        return

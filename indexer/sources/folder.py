"""A source of files: in folders, in zip and tar archives, and on media with a DICOMDIR."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from engine.errors import ImageRefused, QueryError, RefusalReason
from engine.settings import ImageLimits, ZipLimits
from indexer.files.dicom_structure import has_preamble
from indexer.files.dicomdir import FileSet, file_ids, is_dicomdir
from indexer.files.locators import (
    LONGEST_LOCATOR,
    Image,
    file_locator,
    file_path,
    is_too_long,
    locator_of,
)
from indexer.files.open_file import open_file
from indexer.files.tar_archive import (
    TarEntry,
    is_tar,
    tar_locator,
    tar_member,
    tar_members,
)
from indexer.files.zip_archive import (
    Entry,
    is_zip,
    member_label,
    read_directory,
    zip_locator,
    zip_member,
)
from indexer.sources.base import Discovered

__all__ = ["FolderSource"]

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")


class FolderSource:
    """All files below some folders, and files that are given one by one.

    Links to folders are followed, but no folder is entered twice. A folder that cannot be listed
    is reported like a file: the reader refuses it, so it appears among the refused instances.

    Each file in a zip or tar archive is an instance. Files in folders are opened as archives if
    their name ends as theirs do (.zip, .tar, .tar.gz, .tgz, .tar.zst, .tzst), files given one by
    one if they are archives. A DICOMDIR that is given stands for the files it refers to; one found
    in a folder is treated like any other file.
    Archives and DICOMDIRs that cannot be read are reported as one file, which the reader refuses
    with the reason.

    Args:
        paths: folders and files.
        name: of the source.
        leave_out: a folder that is not entered (the data folder may lie in the archive).
        label_from_folder: a file's label is the name of its folder.
        limits: for a DICOMDIR.
        zip_limits: for archives.
        open_archives: False = report archives as plain files.

    Raises:
        QueryError: a path does not exist.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        name: str = "folder",
        leave_out: Path | None = None,
        label_from_folder: bool = False,
        limits: ImageLimits = ImageLimits(),  # noqa: B008 - frozen
        zip_limits: ZipLimits = ZipLimits(),  # noqa: B008 - frozen
        open_archives: bool = True,
    ) -> None:
        for path in paths:
            if not os.path.lexists(path):
                raise QueryError(f"{path} does not exist; name folders or files to index")
        self.name = name
        self._paths = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - keeps links
        self._leave_out = leave_out
        self._label = label_from_folder
        self._limits = limits
        self._zip_limits = zip_limits
        self._open_archives = open_archives

    def instances(self) -> Iterator[Discovered]:
        """All files, folder by folder in the order of their names."""
        entered: set[tuple[int, int]] = set()
        # Looked up only now: the folder may not have existed before.
        if self._leave_out is not None and (left_out := _identity(self._leave_out)):
            entered.add(left_out)
        given: set[Path] = set()
        for path in self._paths:
            # os.path.isdir returns False where Path.is_dir raises: name too long, no permission.
            if os.path.isdir(path):  # noqa: PTH112
                yield from self._walk(path, entered, given)
            elif path not in given:
                given.add(path)
                yield from self._named(path, entered, given)

    def images(self, locators: Iterable[str]) -> Iterator[Image | ImageRefused]:
        """The path, or member of an archive, of each instance, or a refusal, in order."""
        for locator in locators:
            yield _image(locator, self._zip_limits)

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
                    yield from self._file(path)
            folders.extend(reversed(inner))

    def _named(
        self, path: Path, entered: set[tuple[int, int]], given: set[Path]
    ) -> Iterator[Discovered]:
        """The instances that a given file stands for, unless a walk has reported them."""
        ids = self._file_ids(path)
        if ids:
            yield from self._referenced(path, ids, entered, given)
        elif _identity(path.parent) not in entered:
            yield from self._file(path, whatever_its_name=True)

    def _file(self, path: Path, *, whatever_its_name: bool = False) -> Iterator[Discovered]:
        empty = True
        if self._open_archives and (whatever_its_name or path.name.lower().endswith(_ARCHIVES)):
            for found in self._members(path):
                empty = False
                yield found
        if empty:
            yield self._discovered(path)

    def _members(self, path: Path) -> Iterator[Discovered]:
        """The members of an archive; none when the file is no archive, or cannot be read."""
        packed: dict[str, Entry] = {}
        filed: dict[str, TarEntry] = {}
        try:
            with open_file(path) as fp:
                modified = os.fstat(fp.fileno()).st_mtime_ns
                if has_preamble(fp):
                    return
                if is_zip(fp):
                    packed = read_directory(fp, fp.size, self._zip_limits)
                elif is_tar(fp, fp.size, self._zip_limits):
                    filed = tar_members(path, self._zip_limits)
        except (ImageRefused, OSError):
            return
        for name in sorted(packed):
            entry = packed[name]
            label = member_label(path, name) if self._label else None
            yield Discovered(zip_locator(path, name), entry.size, entry.stamp, label)
        # In their order: a packed archive can only be read from its start.
        for name, member in filed.items():
            label = member_label(_without_suffixes(path), name) if self._label else None
            stamp = member.modified or modified
            yield Discovered(tar_locator(path, name), member.size, stamp, label)

    def _file_ids(self, path: Path) -> list[str]:
        """The File IDs of a DICOMDIR; empty when the file is none, or cannot be read."""
        try:
            with open_file(path) as fp:
                if path.name.upper() == "DICOMDIR" or is_dicomdir(fp):
                    return file_ids(fp, fp.size, self._limits)
        except (ImageRefused, OSError):
            pass
        return []

    def _referenced(
        self, dicomdir: Path, ids: list[str], entered: set[tuple[int, int]], given: set[Path]
    ) -> Iterator[Discovered]:
        file_set = FileSet(dicomdir.parent)
        for file_id in ids:
            path = file_set.path(file_id)
            if path is None:
                # It points outside the medium: report the record as an instance, to be refused.
                record = locator_of("file", os.fsencode(dicomdir), os.fsencode(file_id))
                yield Discovered(record, 0, 0)
            elif path not in given:
                given.add(path)
                # A walk has reported the files of its folders, but not files that are missing.
                if not (_identity(path.parent) in entered and os.path.lexists(path)):
                    yield self._discovered(path)

    def _discovered(self, path: Path) -> Discovered:
        label = _printable(path.parent.name) if self._label else None
        try:
            status = path.stat()
        except OSError:
            return Discovered(file_locator(path), 0, 0, label)
        return Discovered(file_locator(path), status.st_size, status.st_mtime_ns, label)


def _image(locator: str, zip_limits: ZipLimits) -> Image | ImageRefused:
    if is_too_long(locator):
        return ImageRefused(
            RefusalReason.UNREADABLE,
            f"its path is longer than the {LONGEST_LOCATOR:,} bytes that the ledger keeps of one; "
            "give its folders shorter names",
        )
    scheme = locator.partition(":")[0]
    if scheme == "zip+file":
        return zip_member(locator)
    if scheme == "tar+file":
        return tar_member(locator, zip_limits)
    if scheme != "file":
        return ImageRefused(
            RefusalReason.UNREADABLE,
            "it is no file and lies in no archive; index it from the source that it is of",
        )
    if "#" in locator:
        return ImageRefused(
            RefusalReason.UNREADABLE,
            "the DICOMDIR refers to a file outside its folder; index the folder of that file",
        )
    return file_path(locator)


def _without_suffixes(archive: Path) -> Path:
    """The path without ".tar.gz" and the like. Only the last suffix is no part of the stem."""
    return archive.with_suffix("") if archive.suffixes[-2:-1] == [".tar"] else archive


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _printable(name: str) -> str:
    """The name in valid Unicode: file systems take any bytes, the index does not."""
    return os.fsencode(name).decode("utf-8", "replace")

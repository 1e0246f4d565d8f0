"""Locators: the URIs by which the ledger names instances, and the paths that they stand for.

``file://…`` is a file, ``zip+file://…#member`` and ``tar+file://…#member`` a file in an archive,
``http(s)://…`` an instance on a DICOMweb server.
"""

import os
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

__all__ = [
    "ARCHIVE_SCHEMES",
    "LONGEST_LOCATOR",
    "Image",
    "TarMember",
    "ZipMember",
    "beginnings",
    "file_locator",
    "file_path",
    "is_file",
    "is_too_long",
    "locator_of",
    "shown",
]

LONGEST_LOCATOR = 2400
"""Bytes. An index entry of PostgreSQL holds at most 2,704, shared with other columns."""
ARCHIVE_SCHEMES = ("zip+file", "tar+file")
"""Schemes of the locators of files in archives."""
_TOO_LONG = "long+"
_SHORTENED = 1500
# What stays percent-encoded also in a locator that has to be short.
_NOT_TEXT = re.compile("[\0-\x7f\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A file inside a zip archive. name: as the archive's directory has it."""

    archive: Path
    name: str


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file inside a tar archive. name: as its header has it. start: position of its content in
    the unpacked archive. size: in bytes. checksum: of its header."""

    archive: Path
    name: str
    start: int
    size: int
    checksum: int


Image = Path | bytes | ZipMember | TarMember
"""The content of an instance: a file, the bytes themselves, or a file in an archive."""


def file_locator(path: Path) -> str:
    """The file URI of an absolute path. Names that are no valid UTF-8 keep their bytes."""
    return locator_of("file", os.fsencode(path))


def locator_of(scheme: str, path: bytes, fragment: bytes | None = None) -> str:
    """The URI of a path, or of something inside that file, short enough for the ledger.

    The path is percent-encoded. If that is longer than :data:`LONGEST_LOCATOR`, the URI is an
    IRI instead, in which non-ASCII text takes a third of the bytes. If that is too long as well,
    it is a unique abbreviation from which the path cannot be recovered: see :func:`is_too_long`.
    """
    parts = [path] if fragment is None else [path, fragment]
    for quoted in (quote_from_bytes, _quoted_where_not_text):
        locator = f"{scheme}://" + "#".join(map(quoted, parts))
        if len(locator.encode()) <= LONGEST_LOCATOR:
            return locator
    start = re.sub(r"%.?\Z", "", f"{scheme}://{quote_from_bytes(path)}"[:_SHORTENED])
    return f"{_TOO_LONG}{start}~{sha256(b'#'.join(parts)).hexdigest()}"


def is_too_long(locator: str) -> bool:
    """Whether the locator is abbreviated, its path being too long: no file can be read by it."""
    return locator.startswith(_TOO_LONG)


def beginnings(scheme: str, path: bytes) -> list[str]:
    """The prefixes that locators of a path, and of all files below it, may start with."""
    whole = f"{scheme}://{quote_from_bytes(path)}"
    return list(
        dict.fromkeys((whole, f"{scheme}://{_quoted_where_not_text(path)}", _TOO_LONG + whole))
    )


def _quoted_where_not_text(name: bytes) -> str:
    return _NOT_TEXT.sub(
        lambda found: quote_from_bytes(found[0].encode("utf-8", "surrogateescape")),
        name.decode("utf-8", "surrogateescape"),
    )


def is_file(locator: str) -> bool:
    """Whether the locator names a plain file, as those of :func:`file_locator` do."""
    return locator.startswith("file://")


def file_path(locator: str) -> Path:
    """The path of a locator that :func:`file_locator` made."""
    return Path(os.fsdecode(unquote_to_bytes(urlsplit(locator).path)))


def shown(locator: str) -> str:
    """A locator as people read it: a path, "archive.zip!member", or the URL itself."""
    if locator.partition(":")[0] not in ("file", *ARCHIVE_SCHEMES):
        return locator
    location, packed, name = locator.partition("#")
    path = str(file_path(location))
    inner = unquote_to_bytes(name).decode("utf-8", "surrogateescape")
    return f"{path}!{inner}" if packed else path

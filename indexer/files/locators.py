"""Where the content of an instance lies, as the ledger writes it (locators: URIs) and as a reading
process finds it."""

import os
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

__all__ = [
    "LONGEST_LOCATOR",
    "Image",
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
"""Bytes. PostgreSQL's indices hold no more than 2,704, of which other columns take some."""
_TOO_LONG = "long+"
_SHORTENED = 1500
# What stays percent-encoded also in a locator that has to be short.
_NOT_TEXT = re.compile("[\0-\x7f\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A file inside a zip archive. name: as the archive's directory has it."""

    archive: Path
    name: str


Image = Path | bytes | ZipMember
"""Where the reading processes find the content of an instance: in a file, here, or packed."""


def file_locator(path: Path) -> str:
    """The file URI of an absolute path. Names that are no valid UTF-8 keep their bytes."""
    return locator_of("file", os.fsencode(path))


def locator_of(scheme: str, path: bytes, fragment: bytes | None = None) -> str:
    """The URI of a path, or of something in the file there, in a form that the ledger can keep.

    Percent-encoded; where that is longer than :data:`LONGEST_LOCATOR`, an IRI, which takes a
    third for most of the world's scripts. Where that is too long as well, one that stands for
    the path but does not say all of it: see :func:`is_too_long`.
    """
    parts = [path] if fragment is None else [path, fragment]
    for quoted in (quote_from_bytes, _quoted_where_not_text):
        locator = f"{scheme}://" + "#".join(map(quoted, parts))
        if len(locator.encode()) <= LONGEST_LOCATOR:
            return locator
    start = re.sub(r"%.?\Z", "", f"{scheme}://{quote_from_bytes(path)}"[:_SHORTENED])
    return f"{_TOO_LONG}{start}~{sha256(b'#'.join(parts)).hexdigest()}"


def is_too_long(locator: str) -> bool:
    """Whether the path is longer than the ledger can keep, so that nobody finds the file by it."""
    return locator.startswith(_TOO_LONG)


def beginnings(scheme: str, path: bytes) -> list[str]:
    """What the locators of all that lies below a path begin with, or have before a "#"."""
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

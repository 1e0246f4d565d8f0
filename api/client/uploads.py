"""Images that are sent: a path, bytes or an open file; read anew whenever a request is repeated."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import IO, BinaryIO

__all__ = ["Upload", "opened", "repeatable_upload"]

Upload = str | os.PathLike[str] | bytes | BinaryIO
"""The path of a file, its bytes, or a file opened for reading bytes, from its beginning."""

_TYPE = "application/octet-stream"


def repeatable_upload(upload: Upload) -> Upload:
    """The same; what cannot be read twice is read now.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(upload, (str, bytes, os.PathLike)):
        return upload
    if isinstance(upload, (bytearray, memoryview)):
        return bytes(upload)
    if not hasattr(upload, "read"):
        raise TypeError(
            f"an image is a path, bytes or a file opened for reading, not {type(upload).__name__}"
        )
    return upload if upload.seekable() else upload.read()


def opened(
    field: str, uploads: tuple[Upload, ...], until: ExitStack
) -> list[tuple[str, tuple[str, IO[bytes] | bytes, str]]]:
    """The parts of a form, as httpx takes them, open for as long as ``until`` is.

    They are named by their numbers: names of files may name patients, and the service has no need
    of them.

    Raises:
        OSError: a file cannot be opened.
    """
    parts: list[tuple[str, tuple[str, IO[bytes] | bytes, str]]] = []
    for number, upload in enumerate(uploads):
        content: IO[bytes] | bytes
        if isinstance(upload, (str, os.PathLike)):
            content = until.enter_context(Path(upload).open("rb"))  # noqa: SIM115 - it is one
        else:
            content = upload
        parts.append((field, (str(number), content, _TYPE)))
    return parts

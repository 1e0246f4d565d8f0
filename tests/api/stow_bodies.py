"""Bodies of requests to store, as senders write them."""

from collections.abc import Sequence

__all__ = ["BOUNDARY", "CONTENT_TYPE", "related"]

BOUNDARY = b"0f3cf5c0-70e0-41ef-baef-c6f9f65ec3e1"
CONTENT_TYPE = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY.decode()}"'
_HEAD = b"Content-Type: application/dicom\r\n"


def related(
    contents: Sequence[bytes],
    *,
    before: bytes = b"",
    head: bytes = _HEAD,
    end: bytes = b"--\r\n",
    boundary: bytes = BOUNDARY,
) -> bytes:
    """A body of these parts. before: its preamble. head: header lines of each part. end: what
    follows the last boundary."""
    parts = (b"--" + boundary + b"\r\n" + head + b"\r\n" + one + b"\r\n" for one in contents)
    return before + b"".join(parts) + b"--" + boundary + end

"""Takes the body of a request apart while it comes, and its instances with it."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi import HTTPException
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from api.http.dicomweb_store.instance import Instance, Outcome

__all__ = ["MOST_INSTANCES", "Reception"]

MOST_INSTANCES = 10_000
"""Of one request."""
_T = TypeVar("_T")
_MOST_PREAMBLE = 64 * 1024
_AT_ONCE = 4
"""Instances that are made durable at a time: each waits for the disk several times."""
_MOST_OPEN = 8
"""Instances that have come and are not written through to the disk yet."""


class Reception:
    """The instances of one request. Nothing is kept of a body that is no multipart, or breaks off.

    Args:
        boundary: of the parts.
        begin: makes the instance of a part with this Content-Type.

    Raises:
        HTTPException: 400, the boundary is none.
    """

    def __init__(self, boundary: bytes, begin: Callable[[str], Instance]) -> None:
        self._begin = begin
        self._delimiter = b"--" + boundary
        self._instances: list[Instance] = []
        self._open: Instance | None = None
        self._unsealed: list[Instance] = []
        self._preamble: bytearray | None = bytearray(b"\n")
        self._name = self._value = b""
        self._content_type = ""
        self._ended = False
        self.is_kept = False
        """Whether the instances are received, as far as they are not refused."""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begun,
                    "on_header_field": self._name_came,
                    "on_header_value": self._value_came,
                    "on_header_end": self._header_ended,
                    "on_headers_finished": self._headers_ended,
                    "on_part_data": self._data_came,
                    "on_part_end": self._part_ended,
                    "on_end": self._all_ended,
                },
            )
        except FormParserError:
            raise HTTPException(400, "the boundary in the Content-Type is too long") from None

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the body.

        Raises:
            HTTPException: 400, they are not of a multipart body; 413, there are too many parts.
        """
        if self._preamble is not None:
            data = self._behind_preamble(data)
        try:
            # With nothing of the body in it: the parser's own messages may quote it.
            self._parser.write(data)
        except FormParserError:
            raise HTTPException(
                400,
                "the body is not built as multipart/related: boundaries and heads of parts have "
                "lines of their own, which end with CR LF (RFC 2046, 5.1)",
            ) from None

    def end(self) -> None:
        """To be called after the last byte.

        Raises:
            HTTPException: 400, the body is not complete, or has no part.
        """
        if not self._ended:
            delimiter = "it has no line with the boundary that the Content-Type names"
            if self._instances or self._preamble is None:
                delimiter = "it ends before its closing boundary; nothing of it is stored"
            raise HTTPException(400, f"the body is not complete: {delimiter}")
        if not self._instances:
            raise HTTPException(400, "the body has no parts; send each instance as one")

    def keep(self) -> list[Outcome]:
        """Receives all instances; returns, when they are durable, what became of each, in order."""
        outcomes = _side_by_side(Instance.keep, self._instances)
        self.is_kept = True
        return outcomes

    def discard(self) -> None:
        """Removes what is not kept."""
        for one in self._instances:
            one.discard()

    @property
    def instances(self) -> Sequence[Instance]:
        return self._instances

    def _behind_preamble(self, data: bytes) -> bytes:
        """What comes from the first boundary on. Some senders begin with an empty line, and text is
        allowed there (RFC 2046, 5.1.1)."""
        before = self._preamble
        if before is None:
            return data
        before += data
        at = before.find(b"\n" + self._delimiter)
        if at >= 0:
            self._preamble = None
            return bytes(before[at + 1 :])
        if len(before) > _MOST_PREAMBLE:
            raise HTTPException(
                400,
                "the body is not built as multipart/related: none of its first lines is the "
                "boundary that the Content-Type names",
            )
        return b""

    # Called by the parser.

    def _part_begun(self) -> None:
        if len(self._instances) >= MOST_INSTANCES:
            raise HTTPException(
                413, f"the request has more than {MOST_INSTANCES} instances; send them in several"
            )
        self._content_type = ""

    def _name_came(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _value_came(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ended(self) -> None:
        if self._name.strip().lower() == b"content-type":
            self._content_type = self._value.decode("latin-1")
        self._name = self._value = b""

    def _headers_ended(self) -> None:
        self._open = self._begin(self._content_type)
        self._instances.append(self._open)

    def _data_came(self, data: bytes, start: int, end: int) -> None:
        if self._open is not None:
            self._open.write(data[start:end])

    def _part_ended(self) -> None:
        if self._open is None:
            return
        self._open.end()
        self._unsealed.append(self._open)
        self._open = None
        if len(self._unsealed) >= _MOST_OPEN:
            _side_by_side(Instance.seal, self._unsealed)
            self._unsealed.clear()

    def _all_ended(self) -> None:
        self._ended = True


def _side_by_side(work: Callable[[Instance], _T], instances: Sequence[Instance]) -> list[_T]:
    if len(instances) == 1:
        return [work(instances[0])]
    with ThreadPoolExecutor(_AT_ONCE, "stow") as threads:
        return list(threads.map(work, instances))

"""Messages between a process that has an index open and those that ask it.

A message is a JSON header and binary buffers: four bytes with the length of the header, the header,
and the buffers one after the other, whose lengths the header has. Only values of the types below
can be sent; nothing that is received is ever run. Four bytes of zero before a message are a sign of
life.

    null, true, 1, 1.5, "text"          themselves
    [ … ]                               a tuple or list, received as a tuple
    {"dict": {…}}                       a dict
    {"bytes": "00ff"}                   bytes
    {"array": n, "dtype": …, "shape"}   the n-th buffer as an array
    {"points": …}                       points: ids, records as text, and arrays of the rest
    {"Filter": {…}}                     a dataclass of engine/store/base.py
"""

import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Protocol

import numpy as np

from engine.errors import StoreError
from engine.records import Point
from engine.store.base import Coarse, Collection, Filter, Ids, Match, Nearest, Part, Profile, Range
from engine.store.cells import Cells
from engine.store.text_record import from_text, to_text

__all__ = ["BEAT", "encoded", "receive", "send", "send_encoded"]

_LENGTH = struct.Struct(">I")
BEAT = _LENGTH.pack(0)
"""Sent before an answer, as often as it takes: it is being worked on."""
_LARGEST_HEADER = 1 << 30
_LARGEST_BUFFERS = 1 << 33
_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (Cells, Coarse, Collection, Filter, Ids, Match, Nearest, Part, Profile, Range)
}
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)
_DTYPES = ("float32", "uint8", "int64")


class Patience(Protocol):
    """How long the other end is waited for, on a connection with a time limit of its own."""

    def heard(self) -> None:
        """The other end has taken or said something."""
        ...

    def check(self) -> None:
        """It has not, within that limit. Raises the error that ends the waiting, if it is to."""
        ...


def send(connection: socket.socket, content: Any, patience: Patience | None = None) -> None:
    """Sends a message.

    Raises:
        OSError: the other end is gone. StoreError, TypeError: as for :func:`encoded`.
    """
    send_encoded(connection, encoded(content), patience)


def encoded(content: Any) -> list[bytes | memoryview]:
    """A message as it is sent, in pieces.

    Raises:
        StoreError: it is too large to be taken. TypeError: it holds what cannot be sent.
    """
    buffers: list[np.ndarray[Any, Any]] = []
    packed = _packed(content, buffers)
    sizes = [buffer.nbytes for buffer in buffers]
    header = json.dumps({"content": packed, "buffers": sizes}, separators=(",", ":"))
    if len(header) > _LARGEST_HEADER or sum(sizes) > _LARGEST_BUFFERS:
        raise StoreError(
            f"a message of {len(header) + sum(sizes):,} bytes is too large for the index's socket; "
            "ask for less at once, or stop the process that has the index open"
        )
    views = [buffer.data.cast("B") for buffer in buffers if buffer.nbytes]
    return [_LENGTH.pack(len(header)) + header.encode("ascii"), *views]


def send_encoded(
    connection: socket.socket,
    message: Sequence[bytes | memoryview],
    patience: Patience | None = None,
) -> None:
    """Sends what :func:`encoded` made. Raises OSError: the other end is gone."""
    for piece in message:
        if patience is None:
            connection.sendall(piece)
            continue
        rest = memoryview(piece)
        while rest:
            try:
                rest = rest[connection.send(rest) :]
                patience.heard()
            except BlockingIOError:
                patience.check()


def receive(connection: socket.socket, patience: Patience | None = None) -> Any:
    """The content of the next message.

    Raises:
        EOFError: the other end is gone. OSError: the connection failed.
        StoreError: it is no message of this kind.
    """
    length = 0
    while not length:
        (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size, patience))
    if length > _LARGEST_HEADER:
        raise StoreError(f"a message with a header of {length} bytes came over the index's socket")
    try:
        about = json.loads(bytes(_read(connection, length, patience)))
        sizes = [int(size) for size in about["buffers"]]
        if min(sizes, default=0) < 0 or sum(sizes) > _LARGEST_BUFFERS:
            raise ValueError("its buffers are too large")
        buffers = [_read(connection, size, patience) for size in sizes]
        return _unpacked(about["content"], buffers)
    except _UNREADABLE as error:
        raise StoreError(
            f"what came over the index's socket cannot be read ({type(error).__name__}); use the "
            "same version of Precedent on both sides"
        ) from None


def _read(connection: socket.socket, size: int, patience: Patience | None) -> bytearray:
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        try:
            count = connection.recv_into(view[at:])
        except BlockingIOError:
            if patience is None:
                raise
            patience.check()
            continue
        if patience is not None:
            patience.heard()
        if not count:
            raise EOFError
        at += count
    return data


def _packed(value: Any, buffers: list[np.ndarray[Any, Any]]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, np.ndarray):
        buffers.append(np.ascontiguousarray(value))
        return {"array": len(buffers) - 1, "dtype": str(value.dtype), "shape": value.shape}
    if isinstance(value, tuple | list):
        if value and all(isinstance(one, Point) for one in value):
            return {"points": _packed(_of_points(value), buffers)}
        return [_packed(one, buffers) for one in value]
    if isinstance(value, dict):
        return {"dict": {key: _packed(one, buffers) for key, one in value.items()}}
    name = type(value).__name__
    if _KINDS.get(name) is not type(value):
        raise TypeError(f"{name} cannot be sent")
    values = {field.name: _packed(getattr(value, field.name), buffers) for field in fields(value)}
    return {name: values}


def _unpacked(value: Any, buffers: list[bytearray]) -> Any:
    if isinstance(value, list):
        return tuple(_unpacked(one, buffers) for one in value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        if value["dtype"] not in _DTYPES:
            raise ValueError("an array of this type is not sent")
        return np.frombuffer(buffers[value["array"]], value["dtype"]).reshape(value["shape"])
    ((name, content),) = value.items()
    if name == "bytes":
        return bytes.fromhex(content)
    if name == "dict":
        return {key: _unpacked(one, buffers) for key, one in content.items()}
    if name == "points":
        return _to_points(_unpacked(content, buffers))
    return _KINDS[name](**{key: _unpacked(one, buffers) for key, one in content.items()})


def _of_points(points: Sequence[Point]) -> dict[str, Any]:
    """Points that all have z, or all have none, as columns."""
    z = [point.z for point in points if point.z is not None]
    words = [point.words for point in points if point.words is not None]
    return {
        "ids": [point.id for point in points],
        "texts": [to_text(point) for point in points],
        "scores": [point.score for point in points],
        "codes": np.stack([point.code for point in points]),
        "z": np.stack(z) if len(z) == len(points) else None,
        **({"words": np.stack(words)} if len(words) == len(points) else {}),
    }


def _to_points(columns: dict[str, Any]) -> tuple[Point, ...]:
    z, words = columns["z"], columns.get("words")
    rows = zip(columns["ids"], columns["texts"], columns["codes"], columns["scores"], strict=True)
    points = (
        from_text(point_id, text, code, z=None if z is None else z[row], score=score)
        for row, (point_id, text, code, score) in enumerate(rows)
    )
    if words is None:
        return tuple(points)
    return tuple(replace(point, words=words[row]) for row, point in enumerate(points))

"""What erased images are known by, and the byte strings that would tell of it in a file."""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.records import ImageRecord, Point
from engine.store.rows import keys_of
from indexer.files.locators import shown

__all__ = ["KINDS", "KnownBy", "Needle", "vector_ends"]

KINDS = ("patient", "study", "series", "sop", "id", "content", "pixels", "locator", "vector")
"""patient: the pseudonym. study, series, sop: UIDs. id: of a point. content, pixels: SHA-256 of a
file and of its pixels. locator: where it lay. vector: the first and last values of z, in hex."""
_MOST_IMAGES = 20_000
_VECTOR_BYTES = 32


@dataclass(frozen=True, slots=True)
class Needle:
    """A byte string that is looked for.

    kind: one of :data:`KINDS`. value: what it stands for. form: how it is written. data: the bytes.
    is_uid: digits beside it make it another one.
    """

    kind: str
    value: str
    form: str
    data: bytes
    is_uid: bool = False


@dataclass(slots=True)
class KnownBy:
    """What images are known by, by kind.

    images: how many there are. Of more than 20,000 only the first are noted one by one, so that
    memory and the note on disk do not grow with what is erased; patients, studies and series are
    noted of all.
    """

    values: dict[str, set[str]] = field(default_factory=lambda: {kind: set() for kind in KINDS})
    images: int = 0

    @property
    def is_sample(self) -> bool:
        return self.images > _MOST_IMAGES

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Adds an instance of the ledger."""
        self.images += 1
        few = self.images <= _MOST_IMAGES
        for kind, value in row.items():
            if few or kind in ("patient", "study", "series"):
                self.values[kind].add(str(value))

    def add_ids(self, ids: Iterable[str]) -> None:
        if not self.is_sample:
            self.values["id"].update(ids)

    def add_point(self, point: Point) -> None:
        """Adds a point; its vector if it comes with it."""
        record = point.record
        for kind in ("patient", "study", "series", "sop"):
            value = getattr(record, kind)
            if value is not None and (not self.is_sample or kind != "sop"):
                self.values[kind].add(value)
        if self.is_sample:
            return
        self.values["id"].add(point.id)
        if (ends := vector_ends(point)) is not None:
            self.values["vector"].add(ends)

    def join(self, other: "KnownBy") -> None:
        """Adds all that another one has."""
        self.images = max(self.images, other.images)
        for kind, values in other.values.items():
            self.values[kind] |= values

    def noted(self) -> dict[str, Any]:
        """For JSON."""
        return {"images": self.images, **{kind: sorted(v) for kind, v in self.values.items()}}

    @classmethod
    def from_noted(cls, noted: Mapping[str, Any]) -> "KnownBy":
        made = cls(images=int(noted["images"]))
        for kind in KINDS:
            made.values[kind] = set(noted.get(kind, ()))
        return made

    def needles(self) -> Iterator[Needle]:
        """All forms in which it may stand in a file."""
        for kind, values in self.values.items():
            for value in sorted(values):
                yield from _forms(kind, value)


def vector_ends(point: Point) -> str | None:
    """The first and the last 32 bytes of a point's z, float32, in hex; None = it comes without."""
    if point.z is None:
        return None
    z = np.ascontiguousarray(point.z, np.float32).tobytes()
    return f"{z[:_VECTOR_BYTES].hex()}-{z[-_VECTOR_BYTES:].hex()}"


def _forms(kind: str, value: str) -> Iterator[Needle]:
    if kind == "vector":
        for part, name in zip(value.split("-"), ("first values", "last values"), strict=True):
            yield Needle(kind, value, f"float32, {name}", bytes.fromhex(part))
        return
    text = value.encode("utf-8", "surrogateescape")
    if kind in ("study", "series", "sop"):
        yield Needle(kind, value, "text", text, is_uid=True)
        hashed = _hashed(kind, value)
        yield Needle(kind, value, "hash of the columns", hashed)
        return
    yield Needle(kind, value, "text", text)
    if kind == "id":
        packed = uuid.UUID(value).bytes
        yield Needle(kind, value, "16 bytes", packed)
        yield Needle(kind, value, "16 bytes, reversed", packed[::-1])
        yield Needle(kind, value, "32 digits", packed.hex().encode())
    elif kind == "locator":
        yield Needle(kind, value, "path", shown(value).encode("utf-8", "surrogateescape"))
    else:
        if kind == "patient":
            yield Needle(kind, value, "hash of the columns", _hashed(kind, value))
        try:
            yield Needle(kind, value, "bytes", bytes.fromhex(value))
        except ValueError:  # no pseudonym of ours
            return


def _hashed(kind: str, value: str) -> bytes:
    """What the columns have of a UID or pseudonym."""
    record = replace(ImageRecord(), **{kind: value})  # type: ignore[arg-type]
    (key,) = (one for one in keys_of(record) if one)
    return key.to_bytes(8, "little")

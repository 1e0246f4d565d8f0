"""The result of reading a file: its frames as display pixels, and its de-identified record."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.errors import RefusalReason
from engine.records import ImageRecord, content_identity, dicom_identity, point_id
from engine.tenants import DEFAULT_TENANT
from indexer.imaging.orientation import AS_STORED, Turn

__all__ = ["Frame", "Instance", "Pictures", "UnreadableFrames"]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture of an instance.

    number: counts from 0 over the frames of the file.
    pixels: uint8 (H, W) or (H, W, 3) RGB, display values, 0 = black.
    decoder: which decoder gave the stored values; "" = there was none to choose.
    turn: what brings the pixels into the usual view of their plane.
    """

    number: int
    pixels: NDArray[np.uint8]
    decoder: str = ""
    turn: Turn = AS_STORED


@dataclass(frozen=True, slots=True)
class UnreadableFrames:
    """Frames of an instance that are missing or broken, and why.

    first, last: their numbers, which count from 0; both are among them.
    detail: one sentence; never text about a patient.
    """

    first: int
    last: int
    reason: RefusalReason
    detail: str

    def __str__(self) -> str:
        numbers = f"frame {self.first}"
        if self.last > self.first:
            numbers = f"frames {self.first} to {self.last}"
        return f"{numbers}: {self.reason.value}"


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """What a file without DICOM header shows. declared: how many frames it has."""

    frames: tuple[Frame, ...]
    declared: int


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One file that was read.

    record: the allow-listed fields of its header; ``frame`` is 0, and ``labels``, ``source`` and
        ``tenant`` are for the caller to fill in.
    content_sha256: hex digest of the whole file.
    frames: the chosen frames, in the order of the file.
    frames_declared: how many frames the header declares.
    partial: frames that are missing, and those that were chosen and are broken.
    frame_fields: by number of a frame, the fields of the record that differ for it; see
        :func:`indexer.imaging.deidentify.frame_fields`.
    """

    record: ImageRecord
    content_sha256: str
    frames: tuple[Frame, ...]
    frames_declared: int
    partial: tuple[UnreadableFrames, ...] = ()
    frame_fields: Mapping[int, Mapping[str, str | None]] = field(default_factory=dict)

    def identity(self, frame: Frame) -> str:
        """What ``frame`` is known by: the SOP Instance UID, else the content."""
        if self.record.sop is not None:
            return dicom_identity(self.record.sop, frame.number)
        if frame.number == 0:
            return content_identity(self.content_sha256)
        return content_identity(f"{self.content_sha256}#{frame.number}")

    def point_id(self, frame: Frame, tenant: str = DEFAULT_TENANT) -> str:
        """Id of ``frame`` in the index of a tenant."""
        return point_id(self.identity(frame), tenant)

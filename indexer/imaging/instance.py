"""The result of reading a file: its frames as display pixels, and its de-identified record."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.records import ImageRecord, content_point_id, dicom_point_id

__all__ = ["Frame", "Instance"]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture of an instance.

    number: counts from 0 over the frames of the file.
    pixels: uint8 (H, W) or (H, W, 3) RGB, display values, 0 = black.
    """

    number: int
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One file that was read.

    record: the allow-listed fields of its header; ``frame`` is 0, and ``labels``, ``source`` and
        ``tenant`` are for the caller to fill in.
    content_sha256: hex digest of the whole file.
    frames: the chosen frames, in the order of the file.
    frames_declared: how many frames the header declares.
    frame_fields: by number of a frame, the fields of the record that differ for it; see
        :func:`indexer.imaging.deidentify.frame_fields`.
    """

    record: ImageRecord
    content_sha256: str
    frames: tuple[Frame, ...]
    frames_declared: int
    frame_fields: Mapping[int, Mapping[str, str | None]] = field(default_factory=dict)

    def point_id(self, frame: Frame) -> str:
        """Id of ``frame`` in the index: from the SOP Instance UID, else from the content."""
        if self.record.sop is not None:
            return dicom_point_id(self.record.sop, frame.number)
        if frame.number == 0:
            return content_point_id(self.content_sha256)
        return content_point_id(f"{self.content_sha256}#{frame.number}")

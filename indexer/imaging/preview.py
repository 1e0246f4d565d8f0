"""Renders one frame of a file for people to look at; runs in the reading processes."""

from dataclasses import dataclass

from indexer.imaging.prepare import ReadTask, read_instance
from indexer.imaging.thumbnails import thumbnail

__all__ = ["Preview", "preview"]

_QUALITY = 92


@dataclass(frozen=True, slots=True)
class Preview:
    """A rendered frame. jpeg: without metadata. content_sha256: of the file that was read, hex.
    sop: its SOP Instance UID. frames: how many it has. is_color: windows do not apply to it."""

    jpeg: bytes
    content_sha256: str
    sop: str | None
    frames: int
    is_color: bool


def preview(task: ReadTask) -> Preview:
    """The frame that ``task.frames`` gives, as stored (not turned), at most
    ``task.thumbnail_side`` pixels long.

    Raises:
        ImageRefused: with the reason, for whatever is wrong with the file.
    """
    instance = read_instance(task)
    pixels = instance.frames[0].pixels
    return Preview(
        thumbnail(pixels, task.thumbnail_side, _QUALITY),
        instance.content_sha256,
        instance.record.sop,
        instance.frames_declared,
        pixels.ndim == 3,
    )

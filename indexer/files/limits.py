"""Limits on an image's size, checked against its header before memory for pixels is allocated."""

from engine.errors import ImageRefused, RefusalReason
from engine.settings import ImageLimits

__all__ = ["check_declared", "check_file_size", "check_held", "declared_bytes"]


def declared_bytes(rows: int, columns: int, frames: int, samples: int, bits_allocated: int) -> int:
    """Bytes of the uncompressed pixels that a header declares, without padding between frames."""
    return (rows * columns * frames * samples * bits_allocated + 7) // 8


def check_file_size(size: int, limits: ImageLimits) -> None:
    """Checks the size of a file in bytes.

    Raises:
        ImageRefused: EMPTY_FILE at 0 bytes; TOO_LARGE above ``limits.max_file_bytes``.
    """
    if size == 0:
        raise ImageRefused(RefusalReason.EMPTY_FILE, "the file has 0 bytes")
    if size > limits.max_file_bytes:
        raise ImageRefused(
            RefusalReason.TOO_LARGE,
            f"the file has {size} bytes and limits.max_file_bytes allows {limits.max_file_bytes}",
        )


def check_declared(
    rows: int,
    columns: int,
    frames: int,
    samples: int,
    bits_allocated: int,
    limits: ImageLimits,
    frames_to_decode: int = 1,
) -> None:
    """Checks an image whose header declares ``frames`` frames of ``rows`` × ``columns`` pixels.

    ``frames_to_decode`` of the frames will be in memory at the same time.

    Raises:
        ImageRefused: TOO_SMALL below ``limits.min_side``; TOO_LARGE above any other limit.
    """
    if min(rows, columns) < limits.min_side:
        raise ImageRefused(
            RefusalReason.TOO_SMALL,
            f"{rows} × {columns} pixels carry no picture; "
            f"limits.min_side asks for {limits.min_side} on each side",
        )
    if rows * columns > limits.max_pixels:
        raise ImageRefused(
            RefusalReason.TOO_LARGE,
            f"a frame of {rows} × {columns} pixels; limits.max_pixels allows {limits.max_pixels}",
        )
    if frames > limits.max_frames:
        raise ImageRefused(
            RefusalReason.TOO_LARGE,
            f"{frames} frames are declared; limits.max_frames allows {limits.max_frames}",
        )
    needed = declared_bytes(rows, columns, frames_to_decode, samples, bits_allocated)
    if needed > limits.max_decoded_bytes:
        raise ImageRefused(
            RefusalReason.TOO_LARGE,
            f"{frames_to_decode} frame(s) of {rows} × {columns} × {samples} at {bits_allocated} "
            f"bits decode to {needed} bytes; limits.max_decoded_bytes allows "
            f"{limits.max_decoded_bytes}",
        )


def check_held(declared: int, held: int) -> None:
    """Checks uncompressed pixel data of which the file holds ``held`` bytes.

    Raises:
        ImageRefused: TRUNCATED when that is less than the ``declared`` bytes.
    """
    if held < declared:
        raise ImageRefused(
            RefusalReason.TRUNCATED,
            f"the header declares {declared} bytes of pixels and the file holds {held}",
        )

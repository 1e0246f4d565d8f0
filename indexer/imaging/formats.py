"""What can be read, in words."""

from engine.errors import ImageRefused, RefusalReason

__all__ = ["no_image"]


def no_image() -> ImageRefused:
    """The refusal of content that is no image of a known format."""
    return ImageRefused(
        RefusalReason.NOT_AN_IMAGE,
        "the content is neither DICOM nor NIfTI, PNG, JPEG, JPEG 2000, TIFF, WebP or BMP",
    )

"""Checks of the decoders: which transfer syntaxes can be read on this machine."""

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec

from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from engine.errors import ImageRefused
from engine.extras import DISTRIBUTION, install_command
from indexer.doctor.examined import Examined
from indexer.doctor.finding import Finding
from indexer.imaging.decoders import decoder_of, is_jpeg

__all__ = ["SYNTAXES", "check_decoders", "unreadable"]

SYNTAXES = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
    HTJ2KLossless,
)
"""Those that archives have, one of each family at least."""
_NEEDED = {
    "PIL.JpegImagePlugin": (JPEGBaseline8Bit,),
    "imagecodecs": (JPEGExtended12Bit, JPEGLosslessSV1),
    "openjpeg": (JPEG2000Lossless, JPEG2000, HTJ2KLossless),
    "jpeg_ls": (JPEGLSLossless, JPEGLSNearLossless),
    "rle": (RLELossless,),
}
"""The libraries that decode them. One that is installed may still not load, as after an update of
the system."""


def check_decoders(_: Examined) -> Iterator[Finding]:
    """Whether each transfer syntax has a decoder that loads."""
    missing = unreadable()
    read = [syntax.name for syntax in SYNTAXES if syntax not in missing]
    if missing:
        named = "; ".join(f"{syntax.name} ({why})" for syntax, why in missing.items())
        yield Finding(
            "decoders",
            "error",
            "decoders",
            f"{len(missing)} of {len(SYNTAXES)} transfer syntaxes cannot be read: {named}",
            f"install the libraries again: pip install --force-reinstall '{DISTRIBUTION}'; then "
            "`precedent index PATH… --retry-refused`",
        )
    else:
        yield Finding(
            "decoders", "ok", "decoders", f"all of {len(SYNTAXES)} read: {', '.join(read)}"
        )
    if find_spec("nibabel") is None:
        yield Finding(
            "decoders.nifti", "ok", "decoders", f"no NIfTI volumes; {install_command('nifti')}"
        )


def unreadable() -> dict[UID, str]:
    """The transfer syntaxes that cannot be read, each with the reason."""
    found: dict[UID, str] = {}
    for library, syntaxes in _NEEDED.items():
        try:
            import_module(library)
        except Exception as error:  # of the library, or of what it is linked with
            for syntax in syntaxes:
                found[syntax] = f"{library}: {type(error).__name__}"
    for syntax in SYNTAXES:
        if syntax in found or is_jpeg(syntax):
            continue
        try:
            decoder_of(syntax)
        except ImageRefused as refused:
            found[syntax] = refused.reason.value
    return found

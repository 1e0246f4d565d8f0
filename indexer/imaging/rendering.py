"""The version of the way from a file to its picture: another one may show the same file otherwise.

Whoever changes what a file looks like, or which files can be read, raises :data:`VERSION`. The
ledger and the index keep the version with each instance.
"""

from engine.settings import Settings

__all__ = ["VERSION", "rendering_of"]

VERSION = 3
"""1: everything before versions were kept. 2: square pixels, LUTs, palettes and padding as the
standard has them, slices turned into their usual view, more kinds of files. 3: palettes of
enhanced ultrasound volumes."""


def rendering_of(settings: Settings) -> str:
    """The rendering with these settings, as it is stored: equal texts, equal pictures."""
    return str(VERSION) if settings.indexing.orient else f"{VERSION}, as stored"

"""The version of the way from a file to its picture: another one may show the same file otherwise.

Whoever changes what a file looks like, or which files can be read, raises :data:`VERSION`. The
ledger and the index keep the version with each instance.
"""

from engine.settings import Settings

__all__ = ["VERSION", "rendering_of"]

VERSION = 2
"""1: everything before versions were kept; square pixels, planes of compressed colour, LUTs and
JPEG Lossless as of 2."""


def rendering_of(settings: Settings) -> str:
    """The rendering with these settings, as it is stored: equal texts, equal pictures."""
    del settings  # none of them changes a picture yet
    return str(VERSION)

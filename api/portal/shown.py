"""How a large picture is shown: through which window, which frame, and turned how."""

import math
from dataclasses import dataclass
from urllib.parse import urlencode

from api.portal.catalogues import later
from engine.errors import QueryError

__all__ = [
    "PRESETS",
    "SOFT_TISSUE",
    "Turned",
    "frame_of",
    "picture_address",
    "turned_of",
    "window_of",
    "written",
]

SOFT_TISSUE = (400, 40)
PRESETS = (
    (later("Lung"), 1500, -600),
    (later("Soft tissue"), *SOFT_TISSUE),
    (later("Bone"), 1800, 400),
    (later("Brain"), 80, 40),
    (later("Liver"), 150, 60),
    (later("Vessels"), 600, 200),
)
"""Windows of CT by name, as marked for the catalogues: width and level in Hounsfield units, as
radiologists use them."""

Window = tuple[float, float]
"""Width and level."""


_DEGREES = (0, 90, 180, 270)


@dataclass(frozen=True, slots=True)
class Turned:
    """How a picture is turned on a page. mirrored: left and right are exchanged, before it is
    turned. degrees: clockwise, one of 0, 90, 180 and 270."""

    degrees: int = 0
    mirrored: bool = False

    @property
    def classes(self) -> str:
        """The classes of the style sheet that turn the picture so; empty = it is as stored."""
        found = [f"turned-{self.degrees}"] if self.degrees else []
        return " ".join([*found, "mirrored"] if self.mirrored else found)

    @property
    def steps(self) -> dict[str, "Turned"]:
        """Where a step leads from here, as it is seen: a quarter to the left or to the right, a
        mirror image, and back to the picture as stored."""
        return {
            "left": Turned((self.degrees + 270) % 360, self.mirrored),
            "right": Turned((self.degrees + 90) % 360, self.mirrored),
            # A mirror image of what is seen is turned the other way round.
            "mirror": Turned(-self.degrees % 360, not self.mirrored),
            "stored": Turned(),
        }

    def written(self) -> dict[str, str]:
        """As an address has it; what is usual is left out."""
        found = {"turn": str(self.degrees)} if self.degrees else {}
        return {**found, "mirror": "true"} if self.mirrored else found


def turned_of(degrees: str, mirror: str) -> Turned:
    """How a picture is turned, of two fields; empty ones = as stored.

    Raises:
        QueryError: the degrees are no quarter turns, or mirror is neither true nor false.
    """
    turns = {str(one): one for one in _DEGREES}
    if degrees.strip() not in ("", *turns):
        raise QueryError(f"turn is {degrees[:20]!r}; use 0, 90, 180 or 270 degrees")
    if mirror.strip() not in ("", "true", "false"):
        raise QueryError(f"mirror is {mirror[:20]!r}; use true or false")
    return Turned(turns.get(degrees.strip(), 0), mirror.strip() == "true")


def window_of(width: str, level: str) -> Window | None:
    """The window of two fields; None = both are empty.

    Raises:
        QueryError: they are no numbers, or the width is below 1.
    """
    if not width.strip() and not level.strip():
        return None
    try:
        found = float(width), float(level)
    except ValueError:
        raise QueryError(
            f"window {width[:20]!r} and level {level[:20]!r} are no numbers; give both, as in "
            "1500 and -600"
        ) from None
    if not (1 <= found[0] < math.inf and math.isfinite(found[1])):
        raise QueryError(f"window is {found[0]:g} and level {found[1]:g}; use a width of 1 or more")
    return found


def frame_of(number: str, usual: int) -> int:
    """The frame, counted from 0.

    Args:
        number: counted from 1, as in DICOM; empty = the usual one.

    Raises:
        QueryError: it is no such number.
    """
    if not number.strip():
        return usual
    try:
        found = int(number)
    except ValueError:
        found = 0
    if not 1 <= found < 2**31:
        raise QueryError(f"frame is {number[:20]!r}; the first one is 1")
    return found - 1


def written(window: Window | None) -> dict[str, str]:
    """Window and level as an address has them."""
    return {} if window is None else {"window": f"{window[0]:g}", "level": f"{window[1]:g}"}


def picture_address(
    image_id: str, window: Window | None, side: int, frame: int | None = None
) -> str:
    """The address of a picture, relative to the search page.

    side: its longest one in pixels. frame: another one of the file; None = that of the image.
    """
    query = {"size": str(side), **written(window)}
    if frame is not None:
        query["frame"] = str(frame)
    return f"v1/images/{image_id}/preview?{urlencode(query)}"

"""Values of interest: the window or VOI LUT that a frame is shown through."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from engine.errors import SettingsError
from indexer.imaging.header import number, text
from indexer.imaging.modality import Modality, first_table

__all__ = [
    "VOI_KEYWORDS",
    "Curve",
    "View",
    "Window",
    "check_view",
    "linear",
    "named_window",
    "voi_of",
]

VOI_KEYWORDS = ("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction")
"""Keywords of the elements that :func:`voi_of` reads."""


@dataclass(frozen=True, slots=True)
class Window:
    """A window that a reader chose. center, width: in the values that come out of the modality
    LUT, of CT in Hounsfield units; width ≥ 1."""

    center: float
    width: float


_Named = Literal["header", "lung", "soft-tissue", "bone"]
View = _Named | Window
"""What a frame is shown through: what its header says, or, if it is CT, a window by name; or a
window of one's own, whatever it is."""

Curve = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From values of any shape, float64, to as many of the same shape; of a window, 0 … 1 from black to
white, and beyond where it clips."""

# Centre and width in Hounsfield units.
_WINDOWS = {"lung": (-600.0, 1500.0), "soft-tissue": (40.0, 400.0), "bone": (400.0, 1800.0)}


def check_view(view: View) -> None:
    """Checks the name of a view.

    Raises:
        SettingsError: there is no view of that name.
    """
    if not isinstance(view, Window) and view not in get_args(_Named):
        raise SettingsError(f"view is {view!r}; use one of " + ", ".join(get_args(_Named)))


def named_window(view: View, modality: Modality) -> Curve | None:
    """The window ``view`` for values that come out of ``modality``; None when it is the header's,
    and where values are not in Hounsfield units, which its centre and width are."""
    if isinstance(view, Window):
        return _window(view.center, view.width, "LINEAR")
    if view == "header" or not modality.hounsfield:
        return None
    return _window(*_WINDOWS[view], "LINEAR")


def voi_of(scopes: list[Dataset], modality: Modality, *, little_endian: bool) -> Curve | None:
    """VOI LUT or the first window (PS3.3 C.11.2) for values that come out of ``modality``; None
    when there is none.

    Args:
        scopes: the datasets that describe the frame, the most specific first.
        little_endian: byte order of LUT data.
    """
    for scope in scopes:
        table = first_table(scope, "VOILUTSequence", modality.outputs, little_endian)
        if table is not None:
            return table.look_up_share
        center = number(scope, "WindowCenter")
        width = number(scope, "WindowWidth")
        if center is not None and width is not None:
            return _window(center, width, text(scope, "VOILUTFunction").upper() or "LINEAR")
    return None


def linear(low: float, high: float) -> Curve:
    """The line from 0 at ``low`` to 1 at ``high``; 0 everywhere when there is no range."""
    if not high > low:
        return lambda values: np.zeros(values.shape)
    if math.isinf(high - low):
        # The difference overflows; that of the halves does not.
        return lambda values: (values / 2 - low / 2) / (high / 2 - low / 2)
    return lambda values: (values - low) / (high - low)


def _window(center: float, width: float, function: str) -> Curve | None:
    """The functions of PS3.3 C.11.2.1.2 and C.11.2.1.3; None when the width is absurd."""
    if not center - width / 2 < center + width / 2 or (function == "LINEAR" and width < 1):
        return None
    if function == "SIGMOID":

        def sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
            exponent = np.clip(-4.0 * (values - center) / width, -700.0, 700.0)
            share: NDArray[np.float64] = 1.0 / (1.0 + np.exp(exponent))
            return share

        return sigmoid
    if function == "LINEAR_EXACT":
        return linear(center - width / 2, center + width / 2)
    if width == 1:
        return lambda values: (values > center - 0.5).astype(np.float64)
    return linear(center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2)

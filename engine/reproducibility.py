"""Makes floating-point sums the same on every run; must be imported before PyTorch.

Intel's MKL chooses the order of a sum by the alignment of the data and the number of threads
unless ``MKL_CBWR`` asks for conditional numerical reproducibility in its strict form. It reads
the variable at its first call, so ``import engine`` sets it.
"""

import os
import sys

__all__ = ["NotReproducible", "request", "shortfall"]

_VARIABLE = "MKL_CBWR"
_STRICT = "STRICT"
_loaded_before = False


class NotReproducible(UserWarning):
    """Warning: an image encoded again may differ from its first encoding in the last bits."""


def request() -> None:
    """Asks MKL for strict reproducibility, unless the environment sets ``MKL_CBWR`` already."""
    global _loaded_before
    if _VARIABLE not in os.environ:
        _loaded_before = "torch" in sys.modules
        os.environ[_VARIABLE] = f"AUTO,{_STRICT}"


def shortfall() -> str | None:
    """Why sums may not be reproducible in this process, and what to do; None = they are."""
    asked = os.environ.get(_VARIABLE, "")
    if not asked.upper().endswith(_STRICT):
        return (
            f"{_VARIABLE} is {asked!r}, which lets the order of a sum depend on where its numbers "
            f"lie; unset it, or set it to 'AUTO,{_STRICT}'"
        )
    if _loaded_before:
        return (
            f"torch was imported before precedent's packages could set {_VARIABLE}; import engine "
            f"first, or set {_VARIABLE}=AUTO,{_STRICT} in the environment"
        )
    return None

"""What makes sums come out the same on every run, settled before PyTorch is loaded.

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
    """An image encoded again may differ from its first encoding in the last bits."""


def request() -> None:
    """Asks MKL for strict reproducibility, unless the environment asks for something itself."""
    global _loaded_before
    if _VARIABLE not in os.environ:
        _loaded_before = "torch" in sys.modules
        os.environ[_VARIABLE] = f"AUTO,{_STRICT}"


def shortfall() -> str | None:
    """Why equal sums cannot be promised in this process, with the way out; None = they can."""
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

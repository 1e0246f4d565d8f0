"""The best weights so far of a run that goes on, as a model that can be used.

Each is a folder ``epoch-0007`` of its own beside what the run will end with. It gets its name when
it is complete, and the one before goes after that: a process that is killed at any moment leaves a
whole model.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from engine.model.manifest import unfinished_models

__all__ = ["remove_interim", "write_interim"]

_PART = ".part"


def write_interim(out: Path, epoch: int, write: Callable[[Path], object]) -> Path:
    """Lets ``write`` fill a folder, names it after the epoch, removes those of before.

    Args:
        out: the folder of the run.
        epoch: from 1.
        write: given a folder that does not exist yet.
    """
    named = out / f"epoch-{epoch:04}"
    if not named.exists():  # it does where a run was killed between its weights and its state
        part = out / f"{_PART}-{epoch:04}"
        shutil.rmtree(part, ignore_errors=True)
        write(part)
        part.replace(named)
    _remove(out, but=named)
    return named


def remove_interim(out: Path) -> None:
    """Removes all of them, once the run has ended."""
    _remove(out, but=None)


def _remove(out: Path, but: Path | None) -> None:
    for found in [*unfinished_models(out), *out.glob(f"{_PART}-*")]:
        if found != but:
            shutil.rmtree(found, ignore_errors=True)

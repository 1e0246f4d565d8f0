"""What a check of the installation found."""

from dataclasses import dataclass
from typing import Literal

from engine.store.check import Check

__all__ = ["Finding", "Level", "of_store", "parted"]

Level = Literal["ok", "warning", "error"]
_LEVELS: dict[str, Level] = {"good": "ok", "warning": "warning", "bad": "error"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one thing.

    check: its stable name, as in "store.writes". thing: what was looked at. value: what was found,
    without secrets and without anything of a patient. way_out: what to do about it; "" when there
    is nothing to do.
    """

    check: str
    level: Level
    thing: str
    value: str
    way_out: str = ""


def of_store(check: Check, thing: str) -> Finding:
    """The finding that a check of the store is."""
    said, way_out = check.sentence, check.way_out
    if check.state != "good" and not way_out:
        said, _, way_out = said.partition("; ")
    return Finding(f"store.{check.name}", _LEVELS[check.state], thing, said, way_out)


def parted(error: Exception, otherwise: str) -> tuple[str, str]:
    """What the message of an error says, and the way out that it ends with.

    otherwise: the way out of one that names none.
    """
    said, _, way_out = str(error).partition("; ")
    return said, way_out or otherwise

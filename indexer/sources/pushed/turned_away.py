"""What one association, or one request, turned away and why, in a line for people.

Refusals are answered one by one, but several widespread senders end well whatever the answers were,
and leave out in silence what was not negotiated. The receiver is then the only one who tells.
"""

import re
from collections import Counter
from collections.abc import Iterable

__all__ = ["TurnedAway"]

_UID = re.compile(r"[0-9][0-9.]{0,63}")
_KINDS = 20
_PROPOSED = 10


class TurnedAway:
    """Counts refusals by answer and SOP class; false while nothing was refused.

    Peers choose what they call a class, so only so many kinds are told apart, and nothing is
    repeated that is no UID.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[int, str, str]] = Counter()
        self._proposed: list[str] = []
        self._more = 0

    def __bool__(self) -> bool:
        return bool(self._counts)

    def note(self, status: int, comment: str, sop_class: str) -> None:
        """One instance more that was refused.

        Args:
            status, comment: as its sender is told. sop_class: its UID, as the peer named it.
        """
        kind = (status, comment, sop_class if _UID.fullmatch(sop_class) else "")
        if kind not in self._counts and len(self._counts) >= _KINDS:
            kind = (status, comment, "")
        self._counts[kind] += 1

    def note_proposed(self, sop_classes: Iterable[str]) -> None:
        """SOP classes that the peer proposed, and that are not taken: it has sent nothing of them,
        or has sent it as something else."""
        found = [one for one in dict.fromkeys(sop_classes) if _UID.fullmatch(one)]
        self._proposed, self._more = found[:_PROPOSED], len(found[_PROPOSED:])

    def __str__(self) -> str:
        told = f"{self._counts.total()} refused"
        if self._counts:
            told += f" ({'; '.join(map(self._line, self._counts))})"
        if self._proposed:
            more = f" and {self._more} more" if self._more else ""
            told += f", SOP classes not taken: {', '.join(self._proposed)}{more}"
        return told

    def _line(self, kind: tuple[int, str, str]) -> str:
        status, comment, sop_class = kind
        of = f" of SOP class {sop_class}" if sop_class else ""
        return f"{self._counts[kind]}{of}: 0x{status:04X}, {comment}"

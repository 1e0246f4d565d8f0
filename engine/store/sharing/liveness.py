"""How long an answer of another process is waited for: as long as that process works on it.

It sends a sign of life every few seconds. In long steps inside Qdrant Edge, which keeps Python's
lock, it cannot; then the system is asked whether it has used its processor since.
"""

import time
from collections.abc import Callable
from pathlib import Path

from engine.errors import StoreLocked

__all__ = ["BEAT_SECONDS", "LOOK_SECONDS", "Liveness"]

BEAT_SECONDS = 5.0
"""Between two signs of life."""
LOOK_SECONDS = 1.0
"""Between two looks at whether the other process works, while it says nothing."""
STOPPED_SECONDS = 10.0
"""A process that is stopped, as by SIGSTOP or a debugger, is waited for so long …"""
IDLE_SECONDS = 60.0
"""… one that says nothing and uses no processor so long …"""
WAITING_SECONDS = 600.0
"""… and so long one that waits for a disk, or of which the system tells nothing."""
_STOPPED = "Tt"
_STATE, _USER_TIME, _SYSTEM_TIME = 0, 11, 12
"""Fields of /proc/PID/stat (proc(5)) after the name, which is in brackets."""


class Liveness:
    """Whether the process that owes an answer still works on it; one for each answer.

    Args:
        pid: of that process; None = not known. named: it, for people.
        clock: seconds.
    """

    def __init__(
        self, pid: int | None, named: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pid = pid
        self._named = named
        self._clock = clock
        self._heard = clock()
        self._worked = self._heard
        self._ticks: int | None = None

    def heard(self) -> None:
        """Notes that the process has said something."""
        self._heard = self._worked = self._clock()

    def check(self) -> None:
        """To be called every second while the process says nothing.

        Raises:
            StoreLocked: it does not work on the answer, and has not for a while.
        """
        now = self._clock()
        state, ticks = _at_work(self._pid)
        if ticks is not None and self._ticks is not None and ticks != self._ticks:
            self._worked = now
        self._ticks = ticks
        if state is not None and state in _STOPPED:
            limit, since, how = STOPPED_SECONDS, self._heard, "is stopped"
        elif state is None or state == "D":
            limit, since, how = WAITING_SECONDS, self._worked, "does not answer"
        else:
            limit, since, how = IDLE_SECONDS, self._worked, "does not answer, nor work"
        if now - since >= limit:
            pid = "PID" if self._pid is None else self._pid
            onward = (
                f"continue it with `kill -CONT {pid}`, or end" if how == "is stopped" else "end"
            )
            raise StoreLocked(
                f"the process that has the index open ({self._named}) {how}, for "
                f"{now - since:.0f} s; {onward} it with `kill -9 {pid}`, and run the same command "
                "again: what was recorded as done is kept"
            )


def _at_work(pid: int | None) -> tuple[str | None, int | None]:
    """The state of a process and the processor time that it has used, in ticks; None where this
    system does not tell."""
    if pid is None:
        return None, None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[_STATE], int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])
    except (OSError, ValueError, IndexError):
        return None, None

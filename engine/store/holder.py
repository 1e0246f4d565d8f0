"""Who has an index open: noted beside its lock, for the processes that find it in use."""

import os
import sys
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from engine.files import write_atomically

__all__ = ["Holder"]


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has an index open.

    command: what it was started as, without arguments, which may name patients. since: local time.
    """

    pid: int | None
    command: str = ""
    since: str = ""

    def __str__(self) -> str:
        told = [f"pid {'unknown' if self.pid is None else self.pid}"]
        told += [f"`{self.command}`"] if self.command else []
        told += [f"since {self.since}"] if self.since else []
        return ", ".join(told)

    @classmethod
    @cache
    def here(cls) -> "Holder":
        """This process, from the first call on."""
        name = sys.argv[1] if len(sys.argv) > 1 else ""
        command = f"precedent {name}" if name.isascii() and name.isalpha() else ""
        return cls(os.getpid(), command, f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}")

    @classmethod
    def noted(cls, path: Path) -> "Holder":
        """What is noted there; nothing is known if that cannot be read."""
        try:
            pid, command, since, *_ = [*path.read_text().split("\n"), "", ""]
            return cls(int(pid), command, since)
        except (OSError, ValueError):
            return cls(None)

    def note(self, path: Path) -> None:
        """Raises OSError: it cannot be written."""
        noted = f"{self.pid}\n{self.command}\n{self.since}\n".encode()
        # After a power cut nobody has the index open.
        write_atomically(path, noted, durable=False)

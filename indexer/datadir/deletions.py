"""Deletions under way: noted until they are done, so that one cut short is brought to its end.

A deletion of many instances takes them out one page after the other. Whoever opens the archive
after a kill finishes it first, so that nothing of what was to go is ever found again.
"""

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import StoreError
from engine.files import write_atomically
from engine.formats import later_format

__all__ = ["Deletions"]

_OURS_ALONE = 0o700


class Deletions:
    """The deletions under way in the data folder ``root``.

    Raises:
        StoreError: the folder cannot be written to.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / "deletions"

    @contextmanager
    def under_way(self, wanted: dict[str, str]) -> Iterator[None]:
        """A block that deletes what has these values. If it fails, that stays to be done."""
        place = self._folder / f"{uuid.uuid4().hex}.json"
        begun = place.with_suffix(".new")
        try:
            self._folder.mkdir(mode=_OURS_ALONE, parents=True, exist_ok=True)
            write_atomically(begun, json.dumps(wanted).encode())
            handle = os.open(begun, os.O_RDONLY)
        except OSError as error:
            raise StoreError(
                f"{self._folder} cannot be written to ({error.strerror}); nothing was deleted"
            ) from None
        try:
            # Locked before it has its name, so that nobody takes it for one that was left.
            fcntl.flock(handle, fcntl.LOCK_EX)
            begun.replace(place)
            yield
            place.unlink(missing_ok=True)
        finally:
            os.close(handle)

    def left(self) -> Iterator[dict[str, str]]:
        """What is still to be deleted, and nobody is at. Each is done when the next one is asked
        for.

        Raises:
            StoreError: a later version noted one.
        """
        for place in sorted(self._folder.glob("*.json")):
            try:
                handle = os.open(place, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its process may have ended it between the listing and the lock.
                if place.exists():
                    noted = json.loads(place.read_bytes())
                    if (later := later_format(noted, str(place))) is not None:
                        raise StoreError(later)
                    yield {str(k): str(v) for k, v in noted.items() if k != "format"}
                    place.unlink(missing_ok=True)
            except (BlockingIOError, ValueError):
                continue
            finally:
                os.close(handle)

"""Erasures under way: what each is to erase and by what it is known, until its report is written.

What an erasure looks for in the end is not in index and ledger any more by then. So it is noted
first, readable to its owner alone, and one that was cut short goes on with it.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ErasureError, StoreLocked
from engine.files import write_atomically
from engine.formats import later_format
from indexer.datadir.layout import DataDir
from indexer.datadir.write_lock import held
from indexer.erasure.known_by import KnownBy

__all__ = ["Note", "Notes"]

_OURS_ALONE = 0o700


@dataclass(frozen=True, slots=True)
class Note:
    """An erasure that has begun.

    tenant: whose. asked: the values by field, of a patient the pseudonym; with "rule" alone it is
    by a rule of retention. begun_at: UTC, ISO 8601. before: counts by place.
    """

    tenant: str
    asked: Mapping[str, str]
    begun_at: str
    known: KnownBy
    before: Mapping[str, int]


class Notes:
    """The notes in a data folder."""

    def __init__(self, data_dir: DataDir) -> None:
        self._data_dir = data_dir
        self.folder = data_dir.erasures / "under-way"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A block that one process at a time is in. Raises StoreLocked: another one is."""
        try:
            self.folder.mkdir(mode=_OURS_ALONE, parents=True, exist_ok=True)
        except OSError as error:
            raise ErasureError(
                f"{self.folder} cannot be made ({error.strerror}); nothing was erased"
            ) from None
        entered = False
        try:
            with held(self._data_dir.erasing_lock, fcntl.LOCK_EX, patience=0):
                entered = True
                yield
        except TimeoutError:
            if entered:
                raise
            raise StoreLocked(
                f"another process erases in {self._data_dir.root}; wait for its end, and run the "
                "command again"
            ) from None

    def write(self, note: Note) -> None:
        """Writes a note, in place of one of the same; it survives a power cut."""
        text = {
            "tenant": note.tenant,
            "asked": dict(note.asked),
            "begun_at": note.begun_at,
            "known": note.known.noted(),
            "before": dict(note.before),
        }
        path = self._place(note.tenant, note.asked)
        write_atomically(path, json.dumps(text).encode(), private=True)

    def of(self, tenant: str, asked: Mapping[str, str]) -> Note | None:
        """The note of an erasure of the same; None = there is none."""
        return self._read(self._place(tenant, asked))

    def left(self) -> list[Note]:
        """All of them, in the order in which they began."""
        found = (self._read(path) for path in self.folder.glob("*.json"))
        return sorted((one for one in found if one is not None), key=lambda one: one.begun_at)

    def forget(self, note: Note) -> None:
        self._place(note.tenant, note.asked).unlink(missing_ok=True)

    def _read(self, path: Path) -> Note | None:
        try:
            found = json.loads(path.read_bytes())
            if (later := later_format(found, str(path))) is not None:
                raise ErasureError(later)
            known = KnownBy.from_noted(found["known"])
            return Note(found["tenant"], found["asked"], found["begun_at"], known, found["before"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ErasureError(
                f"{path} cannot be read ({type(error).__name__}); remove it, and run the erasure "
                "that it is of again"
            ) from None

    def _place(self, tenant: str, asked: Mapping[str, str]) -> Path:
        text = json.dumps([tenant, sorted(asked.items())])
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

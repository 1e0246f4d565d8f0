"""Sendings of documents, and the folder in which they are kept.

A sending is a file with the plans of its documents: UIDs and similarities, and nothing of a
patient. The file lies in the folder itself as long as it is to be attempted, in ``asked`` while the
destination's answer on storage commitment is awaited, and in ``ended`` after that, so that whoever
looks for what is due reads nothing else. Its time of change is set to when it is to be looked at
next, or was ended.

Each change is written in the folder itself, and then moved. What a kill leaves there that has
ended, the next look moves: so it also does with what an earlier version left, which kept all in one
folder.
"""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from engine.files import write_atomically
from indexer.documents.delivery import Fate
from indexer.documents.plans import Plan, plan_from, plan_text

__all__ = ["Sending", "SendingFiles", "document_of", "moment"]

logger = logging.getLogger(__name__)

_FORMAT = 2
"""Of the files: one of a later format is left alone."""
_FIRST_FORMAT = 1
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Sending:
    """Documents on their way to one destination.

    state: "waiting" to be tried (again), "sent" (all are stored), "failed" or "cancelled".
    fates: of the documents, in order.
    commitment: storage commitment of the documents: "not-asked", "not-offered", "refused", "asked",
        "committed", "failed", or "unanswered", if the answer is not awaited any more.
    attempts: how many there were. next_at, made_at, ended_at: seconds since 1970.
    why: what was in the way last; None = nothing.
    asked_by: who asked for it, for the audit log.
    """

    id: str
    tenant: str
    destination: str
    plans: tuple[Plan, ...]
    state: str
    fates: tuple[Fate, ...]
    made_at: float
    next_at: float
    attempts: int = 0
    ended_at: float | None = None
    commitment: str = "not-asked"
    why: str | None = None
    asked_by: Mapping[str, Any] = field(default_factory=dict)


class SendingFiles:
    """The files of sendings in a folder, which is made when the first is written.

    Args:
        awaited: for how many seconds a destination's answer on storage commitment is awaited.
    """

    def __init__(self, folder: Path, awaited: float) -> None:
        self._folder = folder
        self._asked = folder / "asked"
        self._ended = folder / "ended"
        self._locks = folder / "locks"
        self._awaited = awaited
        self._told: set[str] = set()

    def make(self) -> None:
        """Makes the folders."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for one in (self._asked, self._ended, self._locks):
            one.mkdir(mode=0o700, exist_ok=True)

    def read(self, sending: str) -> Sending | None:
        """A sending; None = there is none, or another version of this program noted it."""
        if not _ID.fullmatch(sending):
            return None
        # Twice: while the others are looked at, it may be written anew in the first.
        for folder in (self._folder, self._asked, self._ended) * 2:
            try:
                written = (folder / f"{sending}.json").read_bytes()
            except FileNotFoundError:
                continue
            return self._parsed(sending, written)
        return None

    def write(self, sending: Sending) -> None:
        """Writes a sending and puts it where it belongs; it survives a power cut."""
        self.make()
        text = {
            "format": _FORMAT,
            **asdict(sending),
            "plans": [plan_text(one) for one in sending.plans],
        }
        path = self._folder / f"{sending.id}.json"
        write_atomically(path, json.dumps(text).encode())
        self._put(sending)

    def _put(self, sending: Sending) -> None:
        """Moves the file of a sending from the folder itself to where it belongs."""
        name = f"{sending.id}.json"
        path = self._folder / name
        ended = sending.ended_at
        if ended is None:
            folder, looked_at = self._folder, sending.next_at
        elif sending.commitment == "asked":
            folder, looked_at = self._asked, ended + self._awaited
        else:
            folder, looked_at = self._ended, ended
        os.utime(path, (looked_at, looked_at))
        # First, so that nothing older is left where it is looked for before the new place.
        for other in (self._asked, self._ended):
            (other / name).unlink(missing_ok=True)
        if folder != self._folder:
            path.replace(folder / name)

    def waiting(self, now: float) -> Iterator[Sending]:
        """Sendings whose next attempt is due by then."""
        for name in self._looked_at(self._folder, now):
            found = self.read(name)
            if found is not None and found.ended_at is None:
                yield found
            elif found is not None:
                with self.held(name) as mine:
                    # A kill, or an earlier version, left it here; it may be tried again by now.
                    again = self.read(name) if mine else None
                    if again is not None and again.ended_at is not None:
                        self._adopt(again)

    def _adopt(self, sending: Sending) -> None:
        self.make()
        if (self._folder / f"{sending.id}.json").exists():
            self._put(sending)

    def overdue(self, now: float) -> Iterator[Sending]:
        """Sendings on which an answer of the destination is not awaited any more by then."""
        for name in self._looked_at(self._asked, now):
            found = self.read(name)
            if found is not None and found.commitment == "asked":
                yield found

    def newest(self) -> Iterator[Sending]:
        """All sendings, those that were changed last first, more or less."""
        times: dict[str, float] = {}
        for folder, after in (
            (self._folder, 0.0),
            (self._asked, self._awaited),
            (self._ended, 0.0),
        ):
            times |= {name: at - after for name, at in _listed(folder) if name not in times}
        for name in sorted(times, key=lambda name: (-times[name], name)):
            if (found := self.read(name)) is not None:
                yield found

    def forget(self, before: float) -> list[Sending]:
        """Removes the sendings that ended before then, and tells which."""
        gone = []
        for name in self._looked_at(self._ended, before):
            found = self.read(name)
            if found is None or found.ended_at is None or found.ended_at >= before:
                continue
            self.remove(name)
            gone.append(found)
        return gone

    def count(self) -> dict[str, int]:
        """How many wait for their next attempt ("waiting"), and on how many an answer of the
        destination is awaited ("asked")."""
        return {"waiting": len(_listed(self._folder)), "asked": len(_listed(self._asked))}

    def remove(self, sending: str) -> None:
        """Removes a sending, which nobody else may be changing."""
        for folder in (self._folder, self._asked, self._ended):
            (folder / f"{sending}.json").unlink(missing_ok=True)
        for folder in (self._locks, self._folder):
            (folder / f"{sending}.lock").unlink(missing_ok=True)

    def _looked_at(self, folder: Path, by: float) -> list[str]:
        """The names of what is to be looked at by then, or was ended."""
        return sorted(name for name, at in _listed(folder) if at <= by)

    @contextmanager
    def held(self, sending: str) -> Iterator[bool]:
        """Whether this process may change the sending in the block: one does at a time."""
        self.make()
        lock = FileLock(self._locks / f"{sending}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _parsed(self, sending: str, text: bytes) -> Sending | None:
        try:
            written = json.loads(text)
        except ValueError:
            written = {}
        if written.pop("format", None) not in (_FIRST_FORMAT, _FORMAT):
            if sending not in self._told:
                self._told.add(sending)
                logger.warning("sending %s is left alone: another version noted it", sending)
            return None
        found = {
            **written,
            "plans": tuple(map(plan_from, written["plans"])),
            "fates": tuple(Fate(**one) for one in written["fates"]),
        }
        if found["commitment"] == "answered":
            # So the first format says it.
            every = all(one.committed for one in found["fates"])
            found["commitment"] = "committed" if every else "failed"
        return Sending(**found)


def _listed(folder: Path) -> list[tuple[str, float]]:
    """Ids of the sendings whose files are in the folder, and the times of the files."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name, dot, ending = entry.name.partition(".")
                if ending == "json" and dot and _ID.fullmatch(name):
                    try:
                        found.append((name, entry.stat().st_mtime))
                    except FileNotFoundError:
                        continue
    except (FileNotFoundError, NotADirectoryError):
        return []
    return found


def document_of(sending: Sending) -> dict[str, Any]:
    """What is told of a sending, for JSON: its documents, and neither who asked nor what is in
    them."""
    return {
        "id": sending.id,
        "destination": sending.destination,
        "state": sending.state,
        "attempts": sending.attempts,
        "made_at": moment(sending.made_at),
        "next_at": moment(sending.next_at) if sending.state == "waiting" else None,
        "ended_at": moment(sending.ended_at),
        "why": sending.why,
        "commitment": sending.commitment,
        "instances": [
            {
                "kind": plan.kind,
                "sop": fate.sop,
                "state": fate.state,
                "status": fate.status,
                "detail": fate.detail,
                "committed": fate.committed,
                "failure": fate.failure,
            }
            for plan, fate in zip(sending.plans, sending.fates, strict=True)
        ],
    }


def moment(seconds: float | None) -> str | None:
    """Seconds since 1970 as ISO 8601, UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

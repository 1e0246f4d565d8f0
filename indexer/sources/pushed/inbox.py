"""Stores instances that are pushed to us, and indexes them in rounds.

    received/incoming/       incomplete instances; emptied at every start
    received/3f/a0/UID.dcm   complete ones; the folders are a hash of the SOP Instance UID
    received/3f/a0/3fa0….img those of which only the content is known: its SHA-256

An instance gets its final name only when it is completely on disk, so the process may be killed at
any moment. No data set is parsed here.
"""

import filecmp
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path
from threading import Condition, Lock
from typing import Self

from filelock import FileLock, Timeout

from engine.errors import PrecedentError, SettingsError, StoreError, StoreLocked
from engine.settings import ReceiveSettings
from indexer.files.locators import Image, file_locator, file_path
from indexer.sources.base import Discovered, ImageSource
from indexer.sources.pushed.arrival import Answer, Arrival, file_head, make_folder, sync_folder

__all__ = ["Inbox", "ReceivedSource", "handed_in", "index_in_rounds", "pushed"]

_UID = re.compile(r"[0-9][0-9.]{0,63}")
_WHOLE = ".img"
_KEPT = (".dcm", _WHOLE)
_FAN = re.compile(r"[0-9a-f]{2}")
_AT_ONCE = 1000
_LONGEST_PAUSE = 300.0

_log = logging.getLogger(__name__)


class Inbox:
    """The folder of received instances, and the queue of those that wait to be indexed.

    Only one process at a time may open it. Close it when no more instances can arrive, or use it
    as a context manager.

    A round indexes waiting instances: :meth:`wait` until one is due, :meth:`take` its instances,
    then :meth:`end_round`, or :meth:`put_back` if it failed.

    Args:
        folder: created if it does not exist, accessible only to its owner.
        receive: how much may wait, how much of the disk stays free, when a round is due.
        max_file_bytes: the most bytes of one instance.
        round_size: the most instances of a round. A stop waits for the round; its end frees their
            room.

    Raises:
        StoreLocked: another process has it open. SettingsError: it cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        receive: ReceiveSettings,
        max_file_bytes: int,
        *,
        round_size: int = 10_000,
    ) -> None:
        self._folder = folder.absolute()
        self.incoming = self._folder / "incoming"
        self._receive = receive
        self._max_file_bytes = max_file_bytes
        self._round_size = round_size
        self._changed = Condition()
        self._making = Lock()
        self._waiting: dict[Path, int] = {}
        self._round: dict[Path, int] = {}
        self._behind: Iterator[Path] | None = None
        self._behind_bytes = 0
        self._bytes = 0
        self._last = time.monotonic()
        self._hurried = False
        self._closed = False
        try:
            make_folder(self._folder)
            self._lock = FileLock(self._folder / "lock", thread_local=False)
            self._lock.acquire(timeout=0)
            shutil.rmtree(self.incoming, ignore_errors=True)
            self.incoming.mkdir(mode=0o700, exist_ok=True)
        except Timeout:
            raise StoreLocked(
                f"{folder} is open in another process that receives; stop it, or choose another "
                "--data-dir"
            ) from None
        except OSError as error:
            raise SettingsError(
                f"{folder} cannot be written to ({error.strerror}); give a --data-dir that can"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._lock.release()

    def __iter__(self) -> Iterator[Path]:
        """The files of all received instances that are still there, ordered by folder."""
        return _kept(self._folder)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of instances that are not indexed yet, including those being received."""
        return self._bytes

    @property
    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Refuses further instances; waiting ones can still be indexed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # Receiving.

    def arrive(self, sop_class: str, sop_instance: str, syntax: str) -> Arrival:
        """A new arrival, for the bytes of a data set.

        Args:
            sop_class, sop_instance: its UIDs. syntax: UID of its transfer syntax.
        """
        if not (_UID.fullmatch(sop_class) and _UID.fullmatch(sop_instance)):
            return self.turn_away(Answer.NO_UID)
        digest = sha256(sop_instance.encode()).hexdigest()
        place = self._folder / digest[:2] / digest[2:4] / f"{sop_instance}.dcm"
        return Arrival(self, place, file_head(sop_class, sop_instance, syntax), None)

    def arrive_whole(self, digest: str) -> Arrival:
        """A new arrival, for the bytes of a file of any format.

        Args:
            digest: SHA-256 of the file in hex, by which it is named.
        """
        return Arrival(self, self.place_of(digest), b"", None)

    def place_of(self, digest: str) -> Path:
        """Where the file with this SHA-256 is kept, if it came as a whole file."""
        return self._folder / digest[:2] / digest[2:4] / f"{digest}{_WHOLE}"

    def turn_away(self, answer: Answer) -> Arrival:
        """An arrival that is refused from the start, with this answer."""
        return Arrival(self, self._folder, b"", answer)

    def reserve(self, before: int, more: int, *, check_disk: bool) -> Answer | None:
        """Reserves room for ``more`` bytes of an instance that has ``before`` already; returns
        None, or the answer if there is no room."""
        if before + more > self._max_file_bytes:
            return Answer.TOO_LARGE
        if check_disk:
            free = shutil.disk_usage(self.incoming).free
            if free - more < self._receive.min_free_bytes:
                return Answer.DISK_FULL
        with self._changed:
            if self._closed or self._bytes + more > self._receive.max_waiting_bytes:
                return Answer.NO_ROOM
            self._bytes += more
        return None

    def release(self, count: int) -> None:
        """Releases this many reserved bytes."""
        with self._changed:
            self._bytes -= count

    def keep(self, temporary: Path, place: Path, size: int) -> None:
        """Moves a complete file to its final place. A file of the same content that is already
        there is left as it is, one of other content is replaced."""
        self._make(place.parent)
        if _equal(temporary, place):
            temporary.unlink()
            self.release(size)
            return
        with self._changed:
            _tell_apart(temporary, place)
            temporary.replace(place)
            # Its bytes are reserved already; those of a file that it replaces are released.
            self._bytes -= self._waiting.pop(place, 0)
            self._waiting[place] = size
            self._last = time.monotonic()
            self._changed.notify_all()

    def _make(self, folder: Path) -> None:
        # One thread at a time: a folder that another one finds must be synced already.
        with self._making:
            if not folder.is_dir():
                for made in (folder.parent, folder):
                    made.mkdir(mode=0o700, exist_ok=True)
                    sync_folder(made.parent)

    # Indexing.

    def look_back(self, indexed: Callable[[Sequence[str]], Collection[str]]) -> None:
        """Queues the files of earlier sessions, and counts the bytes of those not indexed yet. To
        be called before anything new arrives.

        Args:
            indexed: returns which of the given locators are in the index.
        """
        walk = iter(self)
        while paths := list(islice(walk, _AT_ONCE)):
            known = indexed([file_locator(path) for path in paths])
            self._behind_bytes += sum(
                path.stat().st_size for path in paths if file_locator(path) not in known
            )
        with self._changed:
            self._bytes += self._behind_bytes
            self._behind = iter(self)

    def wait(self) -> bool:
        """Blocks until a round is due and returns True; returns False when there will be none any
        more."""
        with self._changed:
            while not self._closed:
                due = self._hurried or len(self._waiting) >= self._receive.batch
                if self._behind is not None or (due and self._waiting):
                    return True
                rest = None
                if self._waiting:
                    rest = self._last + self._receive.idle_seconds - time.monotonic()
                    if rest <= 0:
                        return True
                self._changed.wait(rest)
            return bool(self._waiting) or self._behind is not None

    def hurry(self, place: Path) -> None:
        """Makes a round due at once, with the instance in this file."""
        size = place.stat().st_size
        with self._changed:
            if place not in self._waiting and place not in self._round:
                self._bytes += size
                self._waiting[place] = size
            self._hurried = True
            self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Blocks for so many seconds, or until the inbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)

    def take(self) -> list[Path]:
        """Takes the instances of the next round: new ones first, then earlier ones."""
        with self._changed:
            self._hurried = False
            self._round = dict(islice(self._waiting.items(), self._round_size))
            for path in self._round:
                del self._waiting[path]
        try:
            more = list(islice(self._behind or (), self._round_size - len(self._round)))
        except OSError:
            # Start again: files that were taken before are found unchanged quickly.
            self._behind = iter(self)
            raise
        if len(self._round) + len(more) < self._round_size:
            self._behind = None
        # 0: their bytes are counted together, in _behind_bytes.
        self._round = {**dict.fromkeys(more, 0), **self._round}
        return list(self._round)

    def end_round(self) -> None:
        """Ends a round that succeeded: releases the bytes of its instances."""
        with self._changed:
            self._bytes -= sum(self._round.values())
            self._round = {}
            if self._behind is None:
                self._bytes -= self._behind_bytes
                self._behind_bytes = 0

    def put_back(self) -> None:
        """Ends a round that failed: its instances wait again."""
        with self._changed:
            for path, size in self._round.items():
                if path in self._waiting:
                    # It was received again meanwhile.
                    self._bytes -= size
            self._waiting = {**self._round, **self._waiting}
            self._round = {}

    def remove(self, locators: Iterable[str]) -> None:
        """Deletes the files of these instances, except those received again meanwhile."""
        for locator in locators:
            path = file_path(locator)
            with self._changed:
                if path not in self._waiting:
                    path.unlink(missing_ok=True)


class ReceivedSource:
    """Some received instances as a source: the given files only."""

    name = "storescp"

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = paths

    def instances(self) -> Iterator[Discovered]:
        """The instances whose files are still there."""
        for path in self._paths:
            with suppress(FileNotFoundError):
                status = path.stat()
                yield Discovered(file_locator(path), status.st_size, status.st_mtime_ns)

    def images(self, locators: Iterable[str]) -> Iterator[Image]:
        """The path of each instance, in order."""
        return map(file_path, locators)


def index_in_rounds(
    inbox: Inbox,
    index: Callable[[ImageSource], object],
    indexed: Callable[[Sequence[str]], Collection[str]],
    *,
    keep: bool,
    pause_seconds: float = 5.0,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Indexes waiting instances in rounds, until the inbox is closed and none waits.

    Args:
        index: indexes all instances of a source.
        indexed: returns which of the given locators are in the index.
        keep: keep the files of indexed instances. Files of refused instances are always kept, for
            inspection.
        pause_seconds: pause after a round that failed; it doubles with each, up to 5 minutes.
        stop: once it returns True, no further round begins; what waits is found at the next start.

    Raises:
        StoreError: a round failed after the inbox was closed.
    """
    pause = pause_seconds
    while inbox.wait() and not stop():
        try:
            if paths := inbox.take():
                index(ReceivedSource(paths))
                if not keep:
                    inbox.remove(indexed([file_locator(path) for path in paths]))
        except (PrecedentError, OSError) as error:
            inbox.put_back()
            # An OSError's own text would name a file.
            why = error.strerror if isinstance(error, OSError) else str(error)
            if inbox.is_closed:
                raise StoreError(
                    f"what was received last could not be indexed ({why}); it is kept, and the "
                    "same command again goes on with it"
                ) from error
            _log.error("a round of indexing failed, the next try is in %.0f s: %s", pause, why)
            inbox.pause(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            inbox.end_round()
            pause = pause_seconds


def handed_in(folder: Path) -> list[Path]:
    """The files in the folder of an inbox that came as whole files, ordered by folder; none if
    there is no such folder."""
    if not folder.is_dir():
        return []
    return [path for path in _kept(folder.absolute()) if path.suffix == _WHOLE]


def pushed(folder: Path) -> Iterator[Path]:
    """The files in the folder of an inbox that came as instances with a UID, ordered by folder."""
    if folder.is_dir():
        yield from (path for path in _kept(folder.absolute()) if path.suffix != _WHOLE)


def _kept(folder: Path) -> Iterator[Path]:
    for outer in _folders(folder):
        for inner in _folders(outer):
            yield from sorted(path for path in inner.iterdir() if path.suffix in _KEPT)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _FAN.fullmatch(path.name))


def _equal(new: Path, old: Path) -> bool:
    try:
        return filecmp.cmp(new, old, shallow=False)
    except FileNotFoundError:
        return False


def _tell_apart(new: Path, old: Path) -> None:
    """Makes the modification time of a file differ from that of the file it replaces: by it and
    the size the ledger detects that the instance has changed."""
    with suppress(FileNotFoundError):
        before, now = old.stat().st_mtime_ns, new.stat()
        if now.st_mtime_ns == before:
            os.utime(new, ns=(now.st_atime_ns, before + 1))

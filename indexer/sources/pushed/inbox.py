"""Instances that others push to us: on disk before they are acknowledged, then waiting to be
indexed.

    received/incoming/       what is being sent; emptied at every start
    received/3f/a0/UID.dcm   what is complete; the folders are a hash of the SOP Instance UID

An instance gets its final name when all of it is on disk, so that a process may be killed at
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
from indexer.sources.pushed.arrival import Answer, Arrival, file_head, sync_folder

__all__ = ["Inbox", "ReceivedSource", "index_in_rounds"]

_UID = re.compile(r"[0-9][0-9.]{0,63}")
_FAN = re.compile(r"[0-9a-f]{2}")
_ROUND = 10_000
"""Instances indexed in one go: what a stop has to wait for, and when room is made."""
_AT_ONCE = 1000
_LONGEST_PAUSE = 300.0

_log = logging.getLogger(__name__)


class Inbox:
    """The folder of received instances, and which of them wait. One process at a time.

    Close it when nothing more can come, or use it as a context manager.

    Args:
        folder: made when it does not exist, for its owner alone.
        receive: how much may wait, how much of the disk stays free, when a round is due.
        max_file_bytes: of one instance.

    Raises:
        StoreLocked: another process has it. SettingsError: it cannot be written to.
    """

    def __init__(self, folder: Path, receive: ReceiveSettings, max_file_bytes: int) -> None:
        self._folder = folder.absolute()
        self.incoming = self._folder / "incoming"
        self._receive = receive
        self._max_file_bytes = max_file_bytes
        self._changed = Condition()
        self._making = Lock()
        self._waiting: dict[Path, int] = {}
        self._round: dict[Path, int] = {}
        self._behind: Iterator[Path] | None = None
        self._behind_bytes = 0
        self._bytes = 0
        self._last = time.monotonic()
        self._closed = False
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = FileLock(self._folder / "lock", thread_local=False)
            self._lock.acquire(timeout=0)
            shutil.rmtree(self.incoming, ignore_errors=True)
            self.incoming.mkdir(mode=0o700, exist_ok=True)
            sync_folder(self._folder.parent)
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
        """All that was received and is still there, ordered by folder."""
        for outer in _folders(self._folder):
            for inner in _folders(outer):
                yield from sorted(path for path in inner.iterdir() if path.suffix == ".dcm")

    @property
    def waiting_bytes(self) -> int:
        """Of instances that are not indexed yet, those that are being sent included."""
        return self._bytes

    @property
    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Nothing more is taken; what waits can still be indexed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # What comes in.

    def arrive(self, sop_class: str, sop_instance: str, syntax: str) -> Arrival:
        """A new arrival, for the bytes of a data set in this transfer syntax."""
        if not (_UID.fullmatch(sop_class) and _UID.fullmatch(sop_instance)):
            return self.turn_away(Answer.NO_UID)
        digest = sha256(sop_instance.encode()).hexdigest()
        place = self._folder / digest[:2] / digest[2:4] / f"{sop_instance}.dcm"
        return Arrival(self, place, file_head(sop_class, sop_instance, syntax), None)

    def turn_away(self, answer: Answer) -> Arrival:
        """An arrival that is refused before it has begun."""
        return Arrival(self, self._folder, b"", answer)

    def reserve(self, before: int, more: int, *, check_disk: bool) -> Answer | None:
        """Makes room for more bytes of an instance that has some; else why there is none."""
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
        with self._changed:
            self._bytes -= count

    def keep(self, temporary: Path, place: Path, size: int) -> None:
        """Gives a complete file its name. An instance that is there already, with the same
        content, stays as it is; with other content it is replaced."""
        self._make(place.parent)
        if _equal(temporary, place):
            temporary.unlink()
            self.release(size)
            return
        with self._changed:
            _tell_apart(temporary, place)
            temporary.replace(place)
            # Its own bytes were reserved; those of one that it replaces wait no more.
            self._bytes -= self._waiting.pop(place, 0)
            self._waiting[place] = size
            self._last = time.monotonic()
            self._changed.notify_all()

    def _make(self, folder: Path) -> None:
        # One at a time: who finds a folder must be able to rely on it.
        with self._making:
            if not folder.is_dir():
                for made in (folder.parent, folder):
                    made.mkdir(mode=0o700, exist_ok=True)
                    sync_folder(made.parent)

    # What goes to the index.

    def look_back(self, indexed: Callable[[Sequence[str]], Collection[str]]) -> None:
        """Counts what was received earlier, before anything new comes; rounds go through it.

        Args:
            indexed: which of these locators are in the index.
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
        """Returns when a round is due: True; or when there will be none any more: False."""
        with self._changed:
            while not self._closed:
                if self._behind is not None or len(self._waiting) >= self._receive.batch:
                    return True
                rest = None
                if self._waiting:
                    rest = self._last + self._receive.idle_seconds - time.monotonic()
                    if rest <= 0:
                        return True
                self._changed.wait(rest)
            return bool(self._waiting) or self._behind is not None

    def pause(self, seconds: float) -> None:
        """Returns after so long, or when the inbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)

    def take(self) -> list[Path]:
        """The instances of the next round: new ones first, then those of earlier times."""
        with self._changed:
            self._round = dict(islice(self._waiting.items(), _ROUND))
            for path in self._round:
                del self._waiting[path]
        try:
            more = list(islice(self._behind or (), _ROUND - len(self._round)))
        except OSError:
            # From the start: what was gone through is quickly gone through again.
            self._behind = iter(self)
            raise
        if len(self._round) + len(more) < _ROUND:
            self._behind = None
        # Their bytes are counted together.
        self._round = {**dict.fromkeys(more, 0), **self._round}
        return list(self._round)

    def end_round(self) -> None:
        """The round is over: what it took is indexed or refused."""
        with self._changed:
            self._bytes -= sum(self._round.values())
            self._round = {}
            if self._behind is None:
                self._bytes -= self._behind_bytes
                self._behind_bytes = 0

    def put_back(self) -> None:
        """The round has failed: what it took waits again."""
        with self._changed:
            for path, size in self._round.items():
                if path in self._waiting:
                    # It was sent anew meanwhile.
                    self._bytes -= size
            self._waiting = {**self._round, **self._waiting}
            self._round = {}

    def remove(self, locators: Iterable[str]) -> None:
        """Deletes files that were indexed, but for those that were sent anew meanwhile."""
        for locator in locators:
            path = file_path(locator)
            with self._changed:
                if path not in self._waiting:
                    path.unlink(missing_ok=True)


class ReceivedSource:
    """Received instances as a source: these files, and no walk over all there are."""

    name = "storescp"

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = paths

    def instances(self) -> Iterator[Discovered]:
        """Those of the files that are still there."""
        for path in self._paths:
            with suppress(FileNotFoundError):
                status = path.stat()
                yield Discovered(file_locator(path), status.st_size, status.st_mtime_ns)

    def images(self, locators: Iterable[str]) -> Iterator[Image]:
        return map(file_path, locators)


def index_in_rounds(
    inbox: Inbox,
    index: Callable[[ImageSource], object],
    indexed: Callable[[Sequence[str]], Collection[str]],
    *,
    keep: bool,
    pause_seconds: float = 5.0,
) -> None:
    """Indexes what waits, round after round, until the inbox is closed and nothing waits.

    Args:
        index: brings all of a source into the index.
        indexed: which of these locators are in the index.
        keep: keep the files of indexed instances. Those that were refused are kept in any case,
            for people to look at.
        pause_seconds: after a round that failed; it doubles with each, up to 5 minutes.

    Raises:
        StoreError: the last round, after the inbox was closed, has failed.
    """
    pause = pause_seconds
    while inbox.wait():
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


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _FAN.fullmatch(path.name))


def _equal(new: Path, old: Path) -> bool:
    try:
        return filecmp.cmp(new, old, shallow=False)
    except FileNotFoundError:
        return False


def _tell_apart(new: Path, old: Path) -> None:
    """Sees to it that a file's time of change is not that of the one it replaces: together with
    the size, it tells the ledger that there is something to read."""
    with suppress(FileNotFoundError):
        before, now = old.stat().st_mtime_ns, new.stat()
        if now.st_mtime_ns == before:
            os.utime(new, ns=(now.st_atime_ns, before + 1))

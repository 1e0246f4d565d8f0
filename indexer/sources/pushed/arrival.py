"""An instance being received: written to disk as it arrives, and acknowledged only once it is
complete on disk. Its data set is not parsed here."""

import logging
import os
import struct
import tempfile
from contextlib import suppress
from enum import Enum
from pathlib import Path
from threading import Lock
from typing import IO, Protocol

__all__ = ["Answer", "Arrival", "Room", "file_head", "make_folder", "sync_folder"]

_IMPLEMENTATION = "2.25.254318334066809804339014990472851343868"
"""Implementation Class UID of this program, which writes the files (PS3.7, D.3.3.2)."""
_CHECK_BYTES = 4 * 1024**2
"""Free disk space is checked once for every this many bytes of an instance."""
_BUFFER_BYTES = 256 * 1024

_log = logging.getLogger(__name__)


class Answer(Enum):
    """The answer to a sender: the status of a C-STORE (PS3.4, table B.2-1), and a comment.

    With a status of 0xA7xx the sender may try the same instance again later; with 0xCxxx, and with
    0x0122, trying again is useless.
    """

    STORED = 0x0000, ""
    NO_ROOM = 0xA700, "too much waits to be indexed; send it again later"
    DISK_FULL = 0xA700, "too little free disk space; send it again later"
    NOT_WRITTEN = 0xA700, "it could not be written; send it again later"
    NOT_OF_CONTEXT = 0x0122, "SOP Class UID is not that of the presentation context"
    NO_UID = 0xC000, "SOP Class UID or SOP Instance UID is not valid"
    NO_DATA_SET = 0xC000, "there is no data set"
    TOO_LARGE = 0xC000, "it is larger than limits.max_file_bytes"

    @property
    def status(self) -> int:
        return self.value[0]

    @property
    def comment(self) -> str:
        """At most 64 characters: an ErrorComment (0000,0902) holds no more."""
        return self.value[1]


class Room(Protocol):
    """Where arrivals are stored, with limited room for bytes that wait to be indexed."""

    @property
    def incoming(self) -> Path:
        """The folder for incomplete files."""
        ...

    def reserve(self, before: int, more: int, *, check_disk: bool) -> Answer | None:
        """Reserves room for ``more`` bytes of an instance that has ``before`` already; returns
        None, or the answer if there is no room."""
        ...

    def release(self, count: int) -> None:
        """Releases this many reserved bytes."""
        ...

    def keep(self, temporary: Path, place: Path, size: int) -> None:
        """Moves a complete file to ``place``, and takes over its reserved bytes. If it raises
        OSError, it has done neither."""
        ...


class Arrival:
    """An instance that is being received. Its bytes count as waiting from the first one on.

    Once it is refused, its file is removed and further bytes are ignored. Methods may be called
    from several threads.
    """

    def __init__(self, room: Room, place: Path, head: bytes, refused: Answer | None) -> None:
        self._room = room
        self._place = place
        self._answer = refused
        self._lock = Lock()
        self._bytes = 0
        self._unchecked = _CHECK_BYTES
        self._sealed = False
        self._temporary: Path | None = None
        self._file: IO[bytes]
        if refused is None:
            self.write(head)

    @property
    def is_over(self) -> bool:
        return self._answer is not None

    def write(self, data: bytes) -> None:
        """Writes the next bytes of the data set."""
        with self._lock:
            if self._answer is None:
                self._answer = self._written(data)
                if self._answer is not None:
                    self._let_go()

    def seal(self) -> None:
        """Writes the instance through to the disk after its last byte, and closes its file: any
        number of instances may then wait for :meth:`finish`. Until that a kill leaves nothing."""
        with self._lock:
            if self._answer is None:
                self._answer = self._synced()
                if self._answer is not None:
                    self._let_go()

    def finish(self) -> Answer:
        """Completes the instance after its last byte; returns the answer for the sender."""
        with self._lock:
            if self._answer is None:
                self._answer = self._kept()
                if self._answer is not Answer.STORED:
                    self._let_go()
            return self._answer

    def discard(self) -> None:
        """Removes the instance, because the sender broke off."""
        with self._lock:
            if self._answer is None:
                self._answer = Answer.NOT_WRITTEN
                self._let_go()

    def _written(self, data: bytes) -> Answer | None:
        self._unchecked += len(data)
        check_disk = self._unchecked >= _CHECK_BYTES
        if check_disk:
            self._unchecked = 0
        try:
            refused = self._room.reserve(self._bytes, len(data), check_disk=check_disk)
            if refused is not None:
                return refused
            self._bytes += len(data)
            if self._temporary is None:
                handle, name = tempfile.mkstemp(dir=self._room.incoming)
                self._temporary = Path(name)
                self._file = os.fdopen(handle, "wb", _BUFFER_BYTES)
            self._file.write(data)
        except OSError as error:
            return _failed(error)
        return None

    def _synced(self) -> Answer | None:
        if self._temporary is None:
            return Answer.NOT_WRITTEN
        if self._sealed:
            return None
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            return _failed(error)
        self._sealed = True
        return None

    def _kept(self) -> Answer:
        failed = self._synced()
        if failed is not None or self._temporary is None:
            return failed or Answer.NOT_WRITTEN
        try:
            self._room.keep(self._temporary, self._place, self._bytes)
            self._bytes, self._temporary = 0, None
            # Also if the file was there already: whoever stored it may not have synced it yet.
            sync_folder(self._place.parent)
        except OSError as error:
            return _failed(error)
        return Answer.STORED

    def _let_go(self) -> None:
        self._room.release(self._bytes)
        self._bytes = 0
        if self._temporary is not None:
            # What cannot be flushed or removed now is removed at the next start.
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)


def file_head(sop_class: str, sop_instance: str, syntax: str) -> bytes:
    """Preamble and file meta information of a DICOM file (PS3.10, 7.1), always the same bytes."""
    meta = b"".join(
        [
            struct.pack("<HH2sHL2s", 2, 0x01, b"OB", 0, 2, b"\0\1"),
            _uid_element(0x02, sop_class),
            _uid_element(0x03, sop_instance),
            _uid_element(0x10, syntax),
            _uid_element(0x12, _IMPLEMENTATION),
        ]
    )
    return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta


def _uid_element(number: int, uid: str) -> bytes:
    value = uid.encode("ascii")
    value += bytes(len(value) % 2)
    return struct.pack("<HH2sH", 2, number, b"UI", len(value)) + value


def sync_folder(folder: Path) -> None:
    """Makes files created, renamed or removed in the folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Makes a folder, and those that it lies in, so that they survive a power cut. All that are
    made are accessible only to their owner."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for made in reversed(missing):
        made.mkdir(mode=0o700, exist_ok=True)
    for one in reversed(missing or [folder]):
        sync_folder(one.parent)


def _failed(error: OSError) -> Answer:
    # The error's own text would name the file.
    _log.error("an instance could not be written: %s", error.strerror)
    return Answer.NOT_WRITTEN

"""What was encoded of uploads, kept in memory for a while: for further pages, filters and addresses
of the same search; and their pictures, as long as there is room, for searches by a region of them.
Never on disk, and never in a log."""

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

from api.security.access import Caller
from engine.errors import QueryExpired
from engine.records import ImageRecord, Observations
from indexer.imaging.region import WholePicture

__all__ = ["KeptQueries", "KeptQuery", "owner_of", "recent_of", "saved_of"]

_SECONDS = 600.0
_MOST = 1024
_MOST_OF_ONE = 32
_MOST_BYTES = 32 * 1024 * 1024
_MOST_PICTURE_BYTES = 64 * 1024 * 1024
_BESIDE_ARRAYS = 4096
"""Bytes that one takes besides its arrays, about."""


@dataclass(frozen=True, slots=True, eq=False)
class KeptQuery:
    """An upload that was searched for.

    seen: what was encoded of it. record: of its file, pseudonymised as in the index. model: the
    fingerprint of the model that encoded it. image: the id that it has if it is indexed. whole: its
    picture; None = it is not kept any more.
    """

    seen: Observations
    record: ImageRecord
    model: str
    image: str = ""
    whole: WholePicture | None = field(default=None, repr=False)

    @property
    def picture_nbytes(self) -> int:
        return 0 if self.whole is None else len(self.whole.png)

    @property
    def nbytes(self) -> int:
        """Without the picture."""
        arrays = (getattr(self.seen, one.name) for one in fields(self.seen))
        return _BESIDE_ARRAYS + sum(int(one.nbytes) for one in arrays if one is not None)


@dataclass(slots=True)
class _Entry:
    kept: KeptQuery
    owner: str
    until: float
    nbytes: int = field(default=0)


class KeptQueries:
    """Uploads that were searched for, by a random token, each for the session that sent it.

    What was not used for ten minutes is gone, and so is the one that was used longest ago where
    there are too many: of one session, or of all together. Where only the pictures are too large
    together, the search goes on without the picture that was used longest ago.

    Args:
        clock: seconds, never going back.
        seconds, most, most_of_one, most_bytes: how long, how many, of one session, how large.
        most_picture_bytes: how large all pictures may be, beside that.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        seconds: float = _SECONDS,
        most: int = _MOST,
        most_of_one: int = _MOST_OF_ONE,
        most_bytes: int = _MOST_BYTES,
        most_picture_bytes: int = _MOST_PICTURE_BYTES,
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._most = most
        self._most_of_one = most_of_one
        self._most_bytes = most_bytes
        self._most_picture_bytes = most_picture_bytes
        self._lock = threading.Lock()
        # The one that was used longest ago comes first.
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._nbytes = 0
        self._picture_nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def keep(self, owner: str, kept: KeptQuery) -> str:
        """The token of an upload that is kept from now on. owner: see :func:`owner_of`."""
        token = secrets.token_urlsafe(18)
        with self._lock:
            self._end_old()
            self._entries[token] = _Entry(kept, owner, self._until(), kept.nbytes)
            self._nbytes += kept.nbytes
            self._picture_nbytes += kept.picture_nbytes
            mine = [name for name, one in self._entries.items() if one.owner == owner]
            for name in mine[: -self._most_of_one]:
                self._end(name)
            while len(self._entries) > self._most or self._nbytes > self._most_bytes:
                self._end(next(iter(self._entries)))
            for entry in self._entries.values():
                if self._picture_nbytes <= self._most_picture_bytes:
                    break
                self._picture_nbytes -= entry.kept.picture_nbytes
                entry.kept = replace(entry.kept, whole=None)
        return token

    def of(self, token: str, owner: str, model: str) -> KeptQuery:
        """The upload of a token.

        Raises:
            QueryExpired: there is none, it is of another session, or another model encoded it.
        """
        with self._lock:
            self._end_old()
            found = self._entries.get(token)
            # Of another session's it is not even told that it is there.
            if found is None or found.owner != owner or found.kept.model != model:
                raise QueryExpired(
                    "a search by an upload goes on in the session that sent it, until ten minutes "
                    "after it was last used; to go on, choose the file again: the filters stay as "
                    "they are"
                )
            found.until = self._until()
            self._entries.move_to_end(token)
            return found.kept

    def forget(self, owner: str) -> None:
        """Forgets what a session sent."""
        with self._lock:
            for name in [name for name, one in self._entries.items() if one.owner == owner]:
                self._end(name)

    def _until(self) -> float:
        return self._clock() + self._seconds

    def _end_old(self) -> None:
        now = self._clock()
        while self._entries:
            name, first = next(iter(self._entries.items()))
            if now < first.until:
                return
            self._end(name)

    def _end(self, token: str) -> None:
        ended = self._entries.pop(token)
        self._nbytes -= ended.nbytes
        self._picture_nbytes -= ended.kept.picture_nbytes


def owner_of(caller: Caller | None) -> str:
    """Whose uploads these are: of one session, or of one key, in one tenant.

    The secret of a session is not in it.
    """
    if caller is None:
        return ""
    named = (caller.tenant, caller.session or "", caller.key or "", caller.subject or "")
    return hashlib.sha256("\0".join(named).encode()).hexdigest()


def recent_of(caller: Caller | None) -> str:
    """What the list of recent searches in a browser's tab is bound to: another text for each
    session, which tells nothing of it."""
    return hashlib.sha256(f"recent\0{owner_of(caller)}".encode()).hexdigest()[:16]


def saved_of(caller: Caller | None) -> str:
    """What the filters that a browser saves are bound to: the same text for every session of one
    key, or of one person, in one tenant, which tells nothing of them."""
    named = () if caller is None else (caller.tenant, caller.key or "", caller.subject or "")
    return hashlib.sha256("\0".join(("saved", *named)).encode()).hexdigest()[:16]

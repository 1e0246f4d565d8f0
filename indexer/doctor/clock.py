"""Checks of the clock: against the database server, the Qdrant server and the folder's files."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from engine.errors import LedgerError
from indexer.doctor.examined import Examined
from indexer.doctor.finding import Finding, Level

__all__ = ["check_clock"]

_OFF_SECONDS, _FAR_OFF_SECONDS = 5.0, 30.0
"""Half of what takes a living worker for dead by default, and what nobody sets a clock by."""
_FUTURE_SECONDS = 60.0
_SECONDS = 5.0
_WAY_OUT = "let both machines set their clocks by NTP (timedatectl says whether this one does)"


def check_clock(examined: Examined) -> Iterator[Finding]:
    """Whether the clock of this machine agrees with those that it can be compared with."""
    compared = False
    for whose, theirs in (("database server", _of_database), ("Qdrant server", _of_store)):
        off = theirs(examined)
        if off is None:
            continue
        compared = True
        told = f"{abs(off):.1f} s {'behind' if off > 0 else 'ahead of'} the {whose}"
        if abs(off) < _OFF_SECONDS:
            yield Finding("clock", "ok", "clock", f"within {_OFF_SECONDS:g} s of the {whose}")
        else:
            level: Level = "error" if abs(off) >= _FAR_OFF_SECONDS else "warning"
            yield Finding("clock", level, "clock", told, _WAY_OUT)
    newest = _newest_file(examined)
    if newest is not None and (ahead := newest[1] - time.time()) > _FUTURE_SECONDS:
        yield Finding(
            "clock.files",
            "error",
            "clock",
            f"{newest[0]} was written {ahead:,.0f} s from now: the clock of this machine, or of "
            "the one that has the files, is wrong or was set back",
            _WAY_OUT,
        )
    elif not compared:
        now = datetime.now(UTC)
        yield Finding(
            "clock", "ok", "clock", f"{now:%Y-%m-%d %H:%M} UTC; no server to compare it with"
        )


def _of_database(examined: Examined) -> float | None:
    """By how many seconds the database server is ahead; None = there is none that answers."""
    if examined.settings.ledger.url is None or examined.ledger.dialect == "sqlite":
        return None
    try:
        with examined.ledger.begin(read=True) as connection:
            began = time.time()
            theirs = connection.exec_driver_sql(
                "SELECT extract(epoch FROM clock_timestamp())"
            ).scalar_one()
    except LedgerError:
        return None
    return float(theirs) - (began + time.time()) / 2


def _of_store(examined: Examined) -> float | None:
    """By how many seconds the Qdrant server is ahead, by the header of its answer, which has whole
    seconds; None = it does not say."""
    url = examined.settings.store.url
    if url is None or not url.startswith(("http://", "https://")):
        return None
    asked = Request(f"{url.rstrip('/')}/readyz")  # noqa: S310 - the scheme was looked at
    try:
        with urlopen(asked, timeout=_SECONDS) as answer:  # noqa: S310
            said = answer.headers.get("Date")
    except HTTPError as error:
        said = error.headers.get("Date")
    except (OSError, HTTPException):
        return None
    try:
        return None if said is None else parsedate_to_datetime(said).timestamp() + 0.5 - time.time()
    except ValueError:
        return None


def _newest_file(examined: Examined) -> tuple[str, float] | None:
    """The file of the data folder that was written last, and when, seconds since 1970."""
    root = examined.data_dir.root
    if not root.is_dir():
        return None
    found = [(one.name, one.lstat().st_mtime) for one in root.iterdir()]
    return max(found, key=lambda one: one[1], default=None)

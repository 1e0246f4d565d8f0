"""Whether an embedded index is as it should be, found out without opening it here.

A process that has it open is asked, as every command asks it; where none has, the files are looked
at. Nothing is locked, repaired or written.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.errors import FingerprintMismatch, StoreError, StoreNotFound
from engine.locks import is_held
from engine.store.base import Collection, Filter
from engine.store.cells import LEAST_POINTS
from engine.store.check import Check, check_cells
from engine.store.columns_look import ColumnsSeen, look_at_columns
from engine.store.edge_exchange import in_exchange
from engine.store.edge_layout import (
    COLUMNS,
    EPOCH,
    FORMAT,
    check_collection,
    described,
    format_of,
)
from engine.store.holder import Holder
from engine.store.sharing.client import OwnerGone, RemoteStore
from engine.store.sharing.place import connected, socket_path

__all__ = ["EmbeddedSeen", "look_at_embedded"]

_PATIENCE_SECONDS, _LOOK_SECONDS = 3.0, 0.1
"""For how long a process that has just taken the lock may take until it answers."""
_TAIL = 0.25
"""Rows are sorted anew when this share of them was added since (engine/store/columns.py)."""
_OPENED = "any command that opens the index does so, as `precedent info`"


@dataclass(frozen=True, slots=True)
class EmbeddedSeen:
    """What was seen. points: how many it has; None = that cannot be told without opening it.
    collection: what it was made for; None = it does not say."""

    checks: tuple[Check, ...]
    points: int | None = None
    collection: Collection | None = None


def look_at_embedded(directory: Path, wanted: Collection | None) -> EmbeddedSeen:
    """All checks of the embedded index in a folder.

    Args:
        wanted: the kind of points that it must hold; None = any.
    """
    try:
        found, _ = described(directory)
    except StoreNotFound as error:
        said, _, way_out = str(error).partition("; ")
        return EmbeddedSeen((Check("index", "bad", said, way_out),))
    except StoreError as error:
        return EmbeddedSeen((Check("index", "bad", *_parted(error)),))
    checks = [_of_model(directory, found, wanted)]
    points: int | None = None
    try:
        remote, waited = _asked(directory)
        if remote is not None:
            with remote:
                points = remote.count(Filter())
                checks += _of_remote(remote, points)
        elif waited:
            checks.append(_of_silent(directory))
        elif format_of(directory) < FORMAT or in_exchange(directory):
            checks.append(_of_an_earlier_version(directory))
        else:
            seen = look_at_columns(directory / COLUMNS, directory / EPOCH, found)
            # What is still to be read from the shard is not counted.
            points = seen.alive if seen.torn is None and not seen.pending else None
            checks += _of_columns(seen)
    except (StoreError, OSError) as error:
        checks.append(Check("holder", "bad", *_parted(error)))
    return EmbeddedSeen(tuple(checks), points, found)


def _asked(directory: Path) -> tuple[RemoteStore | None, bool]:
    """The process that has the index open; and whether one has that does not answer."""
    lock = directory.with_name(f"{directory.name}.lock")
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        path = socket_path(directory)
        connection = connected(path)
        if connection is not None:
            with suppress(OwnerGone):  # as one that was stopped
                return RemoteStore(path, connection), False
        if not is_held(lock):
            return None, False
        if time.monotonic() > deadline:
            return None, True
        time.sleep(_LOOK_SECONDS)


def _of_model(directory: Path, found: Collection, wanted: Collection | None) -> Check:
    try:
        check_collection(directory, found, wanted)
    except FingerprintMismatch as error:
        return Check("model", "bad", *_parted(error))
    return Check("model", "good", f"the index in {directory} was made by model {found.model}")


def _of_remote(remote: RemoteStore, points: int) -> Iterator[Check]:
    yield Check("holder", "good", f"open in another process ({remote.holder}), which answers")
    if (cells := check_cells(remote.cells, points)) is not None:
        yield cells


def _of_silent(directory: Path) -> Check:
    holder = Holder.noted(directory.with_name(f"{directory.name}.pid"))
    onward = "wait for it" if holder.pid is None else f"end it with `kill {holder.pid}`"
    return Check(
        "holder",
        "bad",
        f"the index in {directory} is open in another process ({holder}), which does not answer",
        f"{onward}, and look again; if it was stopped, continue it with `kill -CONT`",
    )


def _of_an_earlier_version(directory: Path) -> Check:
    return Check(
        "format",
        "warning",
        f"the index in {directory} is of an earlier version",
        f"back it up, and run `precedent upgrade --apply`, or {_OPENED}",
    )


def _of_columns(seen: ColumnsSeen) -> Iterator[Check]:
    if seen.torn is not None:
        yield Check(
            "columns",
            "warning",
            f"the columns beside the index are no use: {seen.torn}",
            f"they are made again from the index, which takes minutes for a million images; "
            f"{_OPENED}",
        )
        return
    if seen.pending:
        yield Check(
            "columns",
            "warning",
            f"a process was killed while it wrote {seen.pending:,} points",
            f"they are read from the index again; {_OPENED}",
        )
    else:
        yield _of_order(seen)
    if (cells := check_cells(seen.cells, seen.alive)) is not None:
        yield cells


def _of_order(seen: ColumnsSeen) -> Check:
    when = "" if seen.written is None else f", written {seen.written:%Y-%m-%d %H:%M} UTC"
    told = f"{seen.alive:,} images in columns{when}"
    loose, gone = seen.rows - seen.ordered, seen.rows - seen.alive
    if seen.alive >= LEAST_POINTS and max(loose, gone) > _TAIL * seen.rows:
        return Check(
            "columns",
            "warning",
            f"{told}; {loose:,} of {seen.rows:,} rows came since they were sorted, {gone:,} are "
            "gone, and searches look at all of them",
            "`precedent profile hash` (or precise, if it has a graph) sorts them; so does the next "
            "`precedent index` that adds something",
        )
    return Check("columns", "good", told)


def _parted(error: Exception) -> tuple[str, str]:
    """What a message says is wrong, and the way out that it ends with."""
    said, _, way_out = str(error).partition("; ")
    return said, way_out or "see to the permissions of the data folder"

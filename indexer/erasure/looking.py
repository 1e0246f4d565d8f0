"""Looks for what was erased in every file of a data folder, and says whose each thing found is."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from engine.store.base import Filter, Match
from indexer.archive import Archive
from indexer.datadir.models import model_directory
from indexer.erasure.byte_search import ByteSearch, Occurrence
from indexer.erasure.known_by import KnownBy, vector_ends
from indexer.ledger.erasing import has_text, is_held

__all__ = ["Looked", "look", "place_of"]

_MOST_NAMED = 1000
_PLACES = {
    "thumbnails": "thumbnails",
    "received": "received",
    "tenants": "received",
    "outbox": "outbox",
    "models": "models",
    "erasures": "reports",
    "deletions": "deletions",
}
_LEDGER, _AUDIT = "ledger.sqlite", "audit.sqlite"


@dataclass(slots=True)
class Looked:
    """What was found. files, bytes: that were read. strings: that were looked for. found: how often
    something stands in a file that nothing there has any more; shared: that images which stay have
    as well; audit: in the audit log; each by file, kind and form. unread: files that could not be
    read."""

    files: int = 0
    bytes: int = 0
    strings: int = 0
    found: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    shared: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    audit: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    unread: list[str] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """For the report; files by their paths in the data folder, which have no names."""
        return {
            "files": self.files,
            "bytes": self.bytes,
            "strings": self.strings,
            "found": _listed(self.found),
            "shared_with_what_stays": _listed(self.shared),
            "in_the_audit_log": _listed(self.audit),
            "unread": self.unread[:_MOST_NAMED],
        }


def look(archive: Archive, known: KnownBy, *, within: Path | None = None) -> Looked:
    """Searches every file of the data folder, and of the model and the SQLite ledger where these
    lie elsewhere.

    Args:
        within: only the files below this folder, by their names there. None = what is found is for
            the report, in which files whose names tell of it are named by their folders alone.
    """
    search = ByteSearch(known.needles())
    looked = Looked(strings=search.strings)
    judge = _Judge(archive, known)
    notes = archive.data_dir.erasures / "under-way"
    for path, name in _files(archive) if within is None else _below(within, within):
        if path.parent == notes:
            continue
        try:
            read, found = search.in_file(path)
        except FileNotFoundError:
            continue
        except OSError:
            looked.unread.append(name)
            continue
        looked.files += 1
        looked.bytes += read
        in_name = search.in_name(name)
        # The report is to tell of nothing itself.
        shown = f"{name.partition('/')[0]}/…" if in_name and within is None else name
        for one in (*in_name, *found):
            key = (shown, one.needle.kind, one.needle.form)
            kind = judge.of(path, one)
            if kind is not None:
                getattr(looked, kind)[key] += 1
    return looked


class _Judge:
    """Says whose an occurrence is."""

    def __init__(self, archive: Archive, known: KnownBy) -> None:
        self._archive = archive
        self._wanted = known.values["vector"]
        self._vectors: frozenset[str] | None = None
        self._is_held = cache(self._asked)
        self._in_ledger = cache(lambda value: has_text(archive.database, value))

    def of(self, path: Path, one: Occurrence) -> str | None:
        """ "found", "shared" or "audit"; None = it is something else."""
        needle = one.needle
        in_ledger = path.name.startswith(_LEDGER)
        if not one.whole and not in_ledger:
            return None
        if path.name.startswith(_AUDIT):
            return "audit" if one.whole else None
        if self._is_held(needle.kind, needle.value):
            return "shared"
        # The values of a row stand side by side in SQLite: where they touch, the end of one and
        # the beginning of the next may read like another UID.
        if not one.whole and not self._in_ledger(needle.value):
            return None
        return "found"

    def _asked(self, kind: str, value: str) -> bool:
        """Whether an image that stays, of any tenant, is known by it."""
        archive = self._archive
        if kind == "vector":
            if self._vectors is None:
                self._vectors = self._those_that_stay()
            return value in self._vectors
        if kind == "id" and archive.whole.get([value]):
            return True
        if kind in ("patient", "study", "series", "sop"):
            where = Filter((Match(kind, (value,)),))
            if archive.whole.count(where):
                return True
        return is_held(archive.database, kind, value)

    def _those_that_stay(self) -> frozenset[str]:
        points = self._archive.whole.scroll(Filter(), with_z=True)
        return frozenset(one for point in points if (one := vector_ends(point)) in self._wanted)


def place_of(name: str) -> str:
    """What a file of the data folder belongs to. "other": nothing of ours, such as a copy that
    somebody made there."""
    first = name.partition("/")[0]
    if first.lstrip(".").startswith("index"):
        return "index"
    if first.startswith(_LEDGER):
        return "ledger"
    return _PLACES.get(first, "other")


def _files(archive: Archive) -> Iterator[tuple[Path, str]]:
    root = archive.data_dir.root
    yield from _below(root, root)
    model = model_directory(archive.settings)
    if not model.is_relative_to(root) and archive.settings.model is not None:
        for path, name in _below(model, model):
            yield path, f"model/{name}"
    url = archive.settings.ledger.url
    if url is not None and url.get_secret_value().startswith("sqlite"):
        file = Path(make_url(url.get_secret_value()).database or "")
        for path in sorted(file.parent.glob(f"{file.name}*")):
            if not path.absolute().is_relative_to(root.absolute()):
                yield path, f"ledger/{path.name}"


def _below(folder: Path, root: Path) -> Iterator[tuple[Path, str]]:
    for here, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(here, name)
            try:
                is_file = stat.S_ISREG(path.lstat().st_mode)
            except FileNotFoundError:
                continue
            if is_file:
                yield path, os.fspath(path.relative_to(root))


def _listed(counts: Counter[tuple[str, str, str]]) -> list[dict[str, Any]]:
    some = sorted(counts.items())[:_MOST_NAMED]
    return [
        {"file": file, "place": place_of(file), "kind": kind, "form": form, "times": times}
        for (file, kind, form), times in some
    ]

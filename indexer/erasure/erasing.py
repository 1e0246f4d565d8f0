"""Erases images: from index, ledger, thumbnails and all else in the data folder, files rewritten,
every byte looked through afterwards."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine import __version__
from engine.errors import BackupError, QueryError
from engine.files import write_atomically
from engine.store.base import Filter, Match
from indexer.archive import Archive
from indexer.backup.noted import forget_manifests, last_backup
from indexer.documents.outbox import Outbox
from indexer.erasure.known_by import KnownBy
from indexer.erasure.looking import Looked, look
from indexer.erasure.notes import Note, Notes
from indexer.erasure.proof import asked_hash, public_key, signed
from indexer.files.locators import file_locator, file_path
from indexer.ledger.erasing import LedgerTraces
from indexer.objects.base import Kept

__all__ = ["Erased", "Erasing", "Found", "Progress"]

_AT_ONCE = _MOST_NAMED = 1000
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Found:
    """What is to be erased: numbers. cut_short: an erasure of the same has begun before."""

    studies: int
    series: int
    instances: int
    points: int
    cut_short: bool = False


@dataclass(frozen=True, slots=True)
class Erased:
    """An erasure that is done. report: where it lies. told: what it says."""

    report: Path
    told: Mapping[str, Any]

    @property
    def is_complete(self) -> bool:
        return bool(self.told["complete"])


@dataclass(slots=True)
class _Work:
    """An erasure under way. locators: of its instances, as far as the ledger has them."""

    note: Note
    locators: list[str] = field(default_factory=list)
    left: list[str] | None = None
    wiped: bool = False
    received: int = 0
    mentions: int = 0
    sendings: int = 0
    manifests: int = 0
    thumbnails: Kept = field(default_factory=Kept)


class Erasing:
    """Erases from an open archive what is its tenant's. One process erases at a time.

    Time grows with the size of the archive: index and ledger are written anew and every file is
    read, once or twice. Memory grows with the number of images erased, up to 20,000 of them, and
    not with the archive.

    Args:
        now: the time. progress: is told what is being done, in a few words.
    """

    def __init__(
        self,
        archive: Archive,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        progress: Progress = lambda _: None,
    ) -> None:
        self._archive = archive
        self._now = now
        self._progress = progress
        self._notes = Notes(archive.data_dir)
        self._traces = LedgerTraces(archive.database.of(archive.tenant))
        self._outbox = Outbox(archive.settings)

    def found(self, asked: Mapping[str, str]) -> Found:
        """What has these values, by field: study, series, sop, and patient as the pseudonym."""
        ledger = self._archive.ledger
        return Found(
            ledger.count_distinct("study", **asked),
            ledger.count_distinct("series", **asked),
            ledger.count(**asked),
            self._archive.store.count(_where(asked)),
            self._notes.of(self._archive.tenant, asked) is not None,
        )

    def erase(self, asked: Mapping[str, str]) -> Erased:
        """Erases all that has these values, and writes the report of it.

        An erasure that was cut short at any moment is ended by the same call again; so is one that
        left something, once that is out of the way.

        Raises:
            QueryError: there is nothing. JobError: a job still indexes it.
            StoreLocked: another process erases. PrecedentError: it failed, and can be repeated.
        """
        with self._notes.alone():
            return self._erased(asked)

    def resume(self) -> list[Erased]:
        """Ends all erasures that were cut short, of whatever tenant; what those did. One by a rule
        of retention is ended by that rule."""
        done = []
        with self._notes.alone():
            for note in self._notes.left():
                if "rule" in note.asked:
                    continue
                of_it = self._archive.of(note.tenant)
                one = Erasing(of_it, now=self._now, progress=self._progress)
                done.append(one._erased(note.asked))
        return done

    def erase_by_rule(self, rule: str, pages: Callable[[], Iterator[Sequence[str]]]) -> Erased:
        """Erases the instances that a rule of retention names, as :meth:`erase` does.

        Args:
            rule: its name. pages: their locators, some at a time; those of a page may be erased
                before the next is taken.
        """
        asked = {"rule": rule}
        with self._notes.alone():
            self._progress("looking for it")
            before, known = self._notes.of(self._archive.tenant, asked), KnownBy()
            for page in pages():
                self._gather(known, page)
            if before is not None:
                known.join(before.known)
            work = self._begun(asked, known, [], before)
            self._progress("deleting")
            for page in pages():
                self._archive.delete_for_good(page)
                self._traces.forget_mentions(page, ())
            return self._ended(work)

    def is_cut_short(self, rule: str) -> bool:
        """Whether an erasure by this rule has begun, and not come to its end."""
        return self._notes.of(self._archive.tenant, {"rule": rule}) is not None

    def _erased(self, asked: Mapping[str, str]) -> Erased:
        self._progress("looking for it")
        ledger, archive = self._archive.ledger, self._archive
        locators = ledger.find(limit=None, **asked)
        known = KnownBy()
        self._gather(known, locators)
        for point in archive.store.scroll(_where(asked), with_z=True):
            known.add_point(point)
        before = self._notes.of(archive.tenant, asked)
        if before is None and not locators and not known.values["id"]:
            raise QueryError("nothing in the index or the ledger is of it; nothing was erased")
        if before is not None:
            known.join(before.known)
        # Refused for a UID that one of these has: it is theirs.
        others = sorted({*self._traces.with_sop(known.values["sop"])} - {*locators})
        self._gather(known, others)
        self._traces.check_jobs(known.values["study"])
        work = self._begun(asked, known, [*locators, *others], before)
        self._progress("deleting")
        archive.delete_all({**asked, "tenant": archive.tenant})
        for start in range(0, len(others), _AT_ONCE):
            archive.delete_for_good(others[start : start + _AT_ONCE])
        return self._ended(work)

    def _gather(self, known: KnownBy, locators: Sequence[str]) -> None:
        ledger, store = self._archive.ledger, self._archive.store
        for start in range(0, len(locators), _AT_ONCE):
            some = locators[start : start + _AT_ONCE]
            for row in self._traces.known_by(some):
                known.add_row(row)
            ids = [one for found in ledger.points_of(some).values() for one in found]
            known.add_ids(ids)
            if not known.is_sample:
                for point in store.get(ids, with_z=True):
                    known.add_point(point)

    def _begun(
        self,
        asked: Mapping[str, str],
        known: KnownBy,
        locators: list[str],
        before: Note | None = None,
    ) -> _Work:
        archive = self._archive
        if before is None:
            begun, counts = self._now().isoformat(timespec="seconds"), self._counts(known)
        else:
            begun, counts = before.begun_at, dict(before.before)
        note = Note(archive.tenant, dict(asked), begun, known, counts)
        self._notes.write(note)
        return _Work(note, locators)

    def _counts(self, known: KnownBy) -> dict[str, int]:
        """How much each place has of it."""
        archive, ids = self._archive, sorted(known.values["id"])
        locators = sorted(known.values["locator"])
        points = sum(
            len(archive.store.get(ids[start : start + _AT_ONCE]))
            for start in range(0, len(ids), _AT_ONCE)
        )
        return {
            "index: points": points,
            "thumbnails": len(archive.thumbnails.existing(ids)),
            "received files": sum(one.exists() for one in self._received_of(locators)),
            "outbox: sendings": len(self._outbox.naming(set(ids), archive.tenant)),
            **{f"ledger: {n}": c for n, c in self._traces.counts(locators).items()},
        }

    def _received_of(self, locators: Sequence[str]) -> list[Path]:
        folder = self._archive.data_dir.received_for(self._archive.tenant)
        start = file_locator(folder.absolute()) + "/"
        return [file_path(one) for one in locators if one.startswith(start)]

    def _ended(self, work: _Work) -> Erased:
        archive, known = self._archive, work.note.known
        work.mentions = self._traces.forget_mentions(
            sorted({*work.locators, *known.values["locator"]}), self._uids_of_nobody(known)
        )
        work.sendings = self._outbox.forget_naming(known.values["id"], archive.tenant)
        work.manifests = forget_manifests(archive.data_dir.root)
        work.thumbnails = self._remove_left_thumbnails(known)
        work.received = self._remove_received(known)
        self._progress("writing the index anew")
        work.left = archive.rewrite()
        self._progress("writing the ledger anew")
        work.wiped = archive.database.wipe()
        self._progress("reading every file")
        looked = look(archive, known)
        if any(file.endswith("cells.npz") for file, kind, _ in looked.found if kind == "vector"):
            # The centroid of a cell was the vector of one image.
            work.left = archive.rewrite(new_cells=True)
            looked = look(archive, known)
        return self._reported(work, looked)

    def _uids_of_nobody(self, known: KnownBy) -> set[str]:
        """Those that no instance of the tenant has any more."""
        ledger = self._archive.ledger
        return {
            one
            for kind in ("study", "series", "sop")
            for one in known.values[kind]
            if not ledger.count(**{kind: one})
        }

    def _remove_left_thumbnails(self, known: KnownBy) -> Kept:
        """Removes what a kill left: thumbnails of no point, and such as were being written; and
        what a bucket keeps of deleted ones. What is left of these."""
        thumbnails, store = self._archive.thumbnails, self._archive.store
        ids = sorted(known.values["id"])
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            of_points = {point.id for point in store.get(some)}
            thumbnails.delete(thumbnails.existing(some) - of_points)
        return thumbnails.purge(ids)

    def _remove_received(self, known: KnownBy) -> int:
        """Removes received files that the ledger knows nothing of, and that have a UID of it which
        nobody else has; returns how many."""
        folder = self._archive.data_dir.received_for(self._archive.tenant)
        only = KnownBy()
        for kind in ("study", "series", "sop"):
            only.values[kind] = known.values[kind]
        found = look(self._archive, only, within=folder).found
        paths = {folder / name for name, _, form in found if form == "text"}
        self._archive.delete([file_locator(one.absolute()) for one in sorted(paths)])
        return len(paths)

    def _reported(self, work: _Work, looked: Looked) -> Erased:
        archive, note, known = self._archive, work.note, work.note.known
        settings = archive.settings
        key = archive.data_dir.pseudonym_key(settings)
        after = self._counts(known)
        root = archive.data_dir.root
        files = sorted(
            str(one.relative_to(root)) for one in root.glob("index*/**/*") if one.is_file()
        )
        left = looked.found or looked.unread or work.left or work.thumbnails.versions
        complete = not left and not any(after.values())
        at = self._now()
        told: dict[str, Any] = {
            "format": 1,
            "precedent": __version__,
            "id": uuid.uuid4().hex,
            "tenant": note.tenant,
            "asked": {
                kind: value if kind == "rule" else asked_hash(key, note.tenant, kind, value)
                for kind, value in note.asked.items()
            },
            "begun_at": note.begun_at,
            "ended_at": at.isoformat(timespec="seconds"),
            "complete": complete,
            "images": known.images,
            "places": {
                place: {"before": note.before.get(place, 0), "after": count}
                for place, count in after.items()
            },
            "also_removed": {
                "received files that were in no ledger": work.received,
                "mentions in jobs and refusals": work.mentions,
                "sendings": work.sendings,
                "manifests of encrypted backups": work.manifests,
            },
            "last_backup": _last_backup(archive),
            "rewritten": {
                "index_files": [] if work.left is None else files[:_MOST_NAMED],
                "indexes_left": work.left or [],
                "ledger": work.wiped,
            },
            "searched": {
                "strings_by_kind": {kind: len(v) for kind, v in known.values.items()},
                "is_sample": known.is_sample,
                **looked.told(),
            },
            "kept": [
                {"what": "audit log", "why": "who saw what has to be told for as long as the law "
                 "says; it names studies and images by their ids, never a patient, and its rows "
                 "are chained by hashes, so that none can be changed and the chain be verified"},
                {"what": "note of what was deleted", "why": "keyed hashes of where the files lay "
                 "keep later runs from taking them in again"},
            ],
            "not_proven": _not_proven(archive, work),
        }  # fmt: skip
        path = archive.data_dir.erasures / f"{at:%Y%m%dT%H%M%SZ}-{told['id'][:8]}.json"
        write_atomically(path, signed(told, archive.data_dir), private=True)
        if complete:
            self._notes.forget(note)
        return Erased(path, {**told, "public_key": public_key(archive.data_dir)})


def _where(asked: Mapping[str, str]) -> Filter:
    return Filter(tuple(Match(name, (value,)) for name, value in asked.items()))


def _last_backup(archive: Archive) -> str | None:
    """The moment of the last backup, which still holds what was erased; None = none is known."""
    with suppress(BackupError):
        at = last_backup(archive.data_dir.root)
        return None if at is None else at.isoformat(timespec="seconds")
    return None


def _not_proven(archive: Archive, work: _Work) -> list[dict[str, str]]:
    """What cannot be shown from here, and why."""
    found = [
        ("file system and disk", "blocks that a file let go of are not overwritten: encrypt the "
         "disk, or discard its free blocks"),
        ("memory of running processes", "a service keeps what was encoded of uploads for up to ten "
         "minutes, and answers that were sent are in browsers' caches"),
        ("copies elsewhere", "snapshots, backups, exports of the audit log, documents that were "
         "sent, and the source itself are outside of the data folder"),
        ("compressed values", "the index packs the records of images (LZ4), in which a text that "
         "repeats another is not there letter by letter: its files were written anew, of what "
         "stays alone"),
        ("other files of the patient", "refused files whose header could not be read have no "
         "patient in the ledger"),
    ]  # fmt: skip
    if archive.settings.storage.thumbnails is not None:
        found.append((
            "object store", "thumbnails are deleted there, and so are the versions that their "
            "bucket kept of them; what replicas, backups and disks of the server let go of, and "
            "when, is the server's decision: names were looked for, bytes were not read",
        ))  # fmt: skip
    if work.thumbnails.why:
        found.append(("versions in the bucket", _of_versions(work.thumbnails)))
    if work.left is None:
        found.append((
            "Qdrant server", "its points are deleted; when segments and log on its disks let go of "
            "them is the server's decision: see its optimiser's `deleted_threshold`, or fill a new "
            "collection and drop this one",
        ))  # fmt: skip
    if archive.database.dialect == "postgresql":
        found.append((
            "PostgreSQL", "its rows are deleted and VACUUM was asked for; pages, write-ahead log, "
            "replicas and dumps of the server are not read from here: `VACUUM FULL` writes the "
            "tables anew",
        ))  # fmt: skip
    elif not work.wiped:
        found.append((
            "ledger", "other processes wrote to it for so long that its file was not written anew: "
            "run the same command again",
        ))  # fmt: skip
    return [{"what": what, "why": why} for what, why in found]


def _of_versions(kept: Kept) -> str:
    if kept.versions is None:
        return f"whether the bucket keeps earlier versions of thumbnails is not known: {kept.why}"
    return f"{kept.versions:,} versions of deleted thumbnails are kept by the bucket: {kept.why}"

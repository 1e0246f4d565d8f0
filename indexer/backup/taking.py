"""Takes what a backup is made of, as of one moment.

First the ledger is read, then the index: whatever the ledger says is done, the index had before.
Nothing is removed in between (``write_lock.copying``). What the index has beyond it is pending
in the ledger, or unknown to it, and is written again with the same ids by the next run of `index`.
"""

import fcntl
import hmac
import json
import os
import shutil
import sqlite3
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from engine import __version__
from engine.errors import BackupError, DiskFull
from engine.files import write_atomically
from engine.locks import is_held
from engine.model.manifest import checkpoint_files, read_manifest
from engine.settings import Settings
from engine.store.opening import open_store
from engine.store.sharing.store import SharedStore
from indexer.backup.database_copy import counted, pinned
from indexer.backup.head import Counts
from indexer.datadir.layout import FIRST_INDEX, DataDir, InForce, remove_folder
from indexer.datadir.models import model_directory
from indexer.datadir.write_lock import copying, writing

__all__ = ["SECRETS", "Taken", "check_kind", "pseudonyms_check", "taken", "versions"]

SECRETS = ("pseudonym.key", "embedding.key", "erasure.key")
"""Files of the data folder that are secret, and in encrypted backups alone."""
_AS_THEY_ARE = ("folder.json", "thumbnails", "outbox", "erasures")
_RECEIVED = ("received", "tenants")
_LEFT_OUT = ("runs", "deletions", "models", "backups", "backup.json", "reencode.lock")
"""What is of this machine alone, or is taken otherwise."""
_ENDS_LEFT_OUT = (".lock", ".gate", ".pid", ".sock", "-wal", "-shm")
_STAGING = ".backup-"
_BEGINNING_SECONDS = 10.0
_CHECKED_BYTES = 4
_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Taken:
    """What a backup is made of.

    at: the moment, UTC. parts: files and folders by their names in the data folder; what others
    may still change in them is only ever added, removed or replaced as a whole file.
    known: files of the index that are those of the backup before.
    index: name of its folder; None = there is none. unknown: names in the data folder that are
    none of ours, and left out.
    """

    at: datetime
    parts: dict[str, Path]
    index: str | None
    counts: Counts
    pseudonyms: Literal["backup", "apart", "settings", "none"]
    pseudonyms_check: str
    known: frozenset[str] = field(default_factory=frozenset)
    unknown: tuple[str, ...] = ()


def check_kind(settings: Settings) -> None:
    """Raises BackupError: index or ledger of these settings are not in the data folder."""
    if settings.store.url is not None:
        raise BackupError(
            "the index is on a Qdrant server (store.url), and `precedent backup` takes embedded "
            "archives alone: back it up with `precedent snapshot FILE`, the ledger with `pg_dump`, "
            "and copy pseudonym.key, thumbnails, models and received from the data folder"
        )
    if settings.ledger.url is not None:
        raise BackupError(
            "the ledger is in a database of its own (ledger.url), and `precedent backup` takes "
            "embedded archives alone: back the ledger up with `pg_dump`, the index with "
            "`precedent snapshot FILE`, and copy pseudonym.key, thumbnails, models and received "
            "from the data folder"
        )


def pseudonyms_check(key: bytes) -> str:
    """Tells whether a key is the same, and nothing of it that pseudonyms do not tell already."""
    return hmac.digest(key, b"precedent backup", "sha256")[:_CHECKED_BYTES].hex()


def versions() -> dict[str, str]:
    """Of the programs that a backup is made with."""
    return {
        "precedent": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "qdrant-edge": version("qdrant-edge-py"),
        "sqlite": sqlite3.sqlite_version,
    }


@contextmanager
def taken(
    settings: Settings,
    known: Mapping[str, tuple[int, str]],
    known_index: str | None,
    *,
    secrets: bool,
    received: bool,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[Taken]:
    """Takes everything as of one moment; copies of what would change are kept for the block, in
    the data folder.

    Args:
        known: size and SHA-256 of files of the index that need not be copied if they are unchanged.
        known_index: the index that they are of.
        secrets: with the keys. received: with received files.

    Raises:
        BackupError: there is no archive, or it cannot be copied. StoreError, DiskFull, ModelError:
            index or model cannot be read, or there is no room for a copy.
    """
    check_kind(settings)
    data_dir = DataDir(settings.data_dir)
    if not data_dir.exists:
        raise BackupError(
            f"there is no archive in {data_dir.root}; name another place with --data-dir"
        )
    # An index that is being replaced waits, and no other one comes into force before the copy.
    with _staging(data_dir.root) as (staging, lock), ExitStack() as pins:
        with writing(data_dir.root):
            name = data_dir.index.name
            folder = staging / name
            points, files = None, frozenset[str]()
            _check_room(settings, data_dir)
            with copying(data_dir.root):
                at = clock()
                pinned_now = [
                    (pins.enter_context(pinned(path)), staging / path.name)
                    for path in (data_dir.ledger, data_dir.audit)
                    if path.is_file()
                ]
                _copy_notes(data_dir.root / "deletions", staging / "deletions")
                if data_dir.index.is_dir():
                    before = known if name == known_index else {}
                    points, files = _copy_index(settings, data_dir, folder, before, lock)
            parts = _model(settings, data_dir, staging, name if points is not None else None)
        for one, place in pinned_now:
            one.copy_to(place)
            parts[place.name] = place
        pins.close()
        if points is not None:
            parts[name] = folder
        if (staging / "deletions").is_dir():
            parts["deletions"] = staging / "deletions"
        wanted = (*_AS_THEY_ARE, *(_RECEIVED if received else ()), *(SECRETS if secrets else ()))
        unknown = []
        for entry in sorted(data_dir.root.iterdir()):
            if entry.name in wanted:
                parts[entry.name] = entry
            elif _is_unknown(entry.name):
                unknown.append(entry.name)
        where, check = _pseudonyms(settings, data_dir, secrets=secrets)
        yield Taken(
            at,
            parts,
            name if points is not None else None,
            counted(staging / "ledger.sqlite", staging / "audit.sqlite", points),
            where,
            check,
            files,
            tuple(unknown),
        )


def _is_unknown(name: str) -> bool:
    ours = (*_AS_THEY_ARE, *_RECEIVED, *_LEFT_OUT, *SECRETS, "current.json", "served.json")
    databases = ("ledger.sqlite", "audit.sqlite", "request-rates.sqlite")
    is_ours = name in ours or name.startswith((FIRST_INDEX, ".", *databases))
    return not is_ours and not name.endswith(_ENDS_LEFT_OUT)


@contextmanager
def _staging(root: Path) -> Iterator[tuple[Path, Path]]:
    """A folder in the data folder for copies, and a file that is locked while it is used. Those
    that were left are removed."""
    for path in root.glob(f"{_STAGING}*"):
        with suppress(OSError):
            # Of one that was made just now the lock may not be taken yet.
            old = time.time() - path.stat().st_mtime > _BEGINNING_SECONDS
            if old and not is_held(path / "lock"):
                shutil.rmtree(path, ignore_errors=True)
    staging = root / f"{_STAGING}{uuid.uuid4().hex[:12]}"
    try:
        staging.mkdir(mode=0o700)
        handle = os.open(staging / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise BackupError(
            f"{root} cannot be written to ({error.strerror}), and copies are made there; run the "
            "command as the user of the service"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield staging, staging / "lock"
    finally:
        os.close(handle)
        with suppress(Exception):
            remove_folder(staging)


def _check_room(settings: Settings, data_dir: DataDir) -> None:
    """Raises DiskFull: copies of index, ledger and audit log have no room."""
    files = [*data_dir.index.rglob("*"), data_dir.ledger, data_dir.audit]
    needed = 0
    for path in files:
        with suppress(OSError):
            needed += path.stat().st_blocks * 512
    least, free = settings.indexing.min_free_bytes, shutil.disk_usage(data_dir.root).free
    if free < needed + least:
        raise DiskFull(
            f"the disk of {data_dir.root} has {free // _MIB:,} MiB free; copies of index and "
            f"ledger need {needed // _MIB:,} MiB while a backup is made, beside the "
            f"{least // _MIB:,} MiB of indexing.min_free_bytes; make room"
        )


def _copy_index(
    settings: Settings,
    data_dir: DataDir,
    folder: Path,
    known: Mapping[str, tuple[int, str]],
    lock: Path,
) -> tuple[int, frozenset[str]]:
    with open_store(settings, data_dir.index, None, create=False) as store:
        if not isinstance(store, SharedStore):
            raise BackupError("the index is not an embedded one; unset PRECEDENT_STORE__URL")
        points, files = store.copy_to(folder, known, lock)
    return points, frozenset(one.path for one in files if not one.is_there)


def _copy_notes(folder: Path, place: Path) -> None:
    """Copies the notes of deletions under way, which a restored archive then brings to their
    end."""
    for path in sorted(folder.glob("*.json")):
        # One may end just now; then it is done in index and ledger too.
        with suppress(FileNotFoundError):
            place.mkdir(mode=0o700, exist_ok=True)
            (place / path.name).write_bytes(path.read_bytes())


def _model(
    settings: Settings, data_dir: DataDir, staging: Path, index: str | None
) -> dict[str, Path]:
    """The model of the index, wherever it lies, and a record by which it is in force."""
    directory = model_directory(settings)
    fingerprint = read_manifest(directory).fingerprint
    name = f"models/{fingerprint}"
    parts = {f"{name}/{path.name}": path for path in checkpoint_files(directory)}
    now = data_dir.in_force()
    noted = InForce(index or FIRST_INDEX, name, since=None if now is None else now.since)
    write_atomically(staging / "current.json", json.dumps(asdict(noted)).encode())
    return {**parts, "current.json": staging / "current.json"}


def _pseudonyms(
    settings: Settings, data_dir: DataDir, *, secrets: bool
) -> tuple[Literal["backup", "apart", "settings", "none"], str]:
    if settings.pseudonym_key is not None:
        return "settings", pseudonyms_check(data_dir.pseudonym_key(settings))
    if not (data_dir.root / SECRETS[0]).is_file():
        return "none", ""
    return "backup" if secrets else "apart", pseudonyms_check(data_dir.pseudonym_key(settings))

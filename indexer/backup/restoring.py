"""Restores an archive from backups: whole, or not at all."""

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import BackupError
from engine.files import write_atomically
from engine.locks import is_held
from engine.settings import Settings
from indexer.backup.chain import Backup
from indexer.backup.database_copy import forget_sessions, moved
from indexer.backup.examining import CheckAudit, Verified, examine
from indexer.backup.making import Progress
from indexer.backup.rebuilding import rebuilt
from indexer.backup.taking import SECRETS, check_kind, pseudonyms_check
from indexer.files.locators import file_locator

if TYPE_CHECKING:
    from pyrage.x25519 import Identity

__all__ = ["restore"]

_STAGING = "-restoring-"
_BEGINNING_SECONDS = 10.0


def restore(
    chain: Sequence[Backup],
    identities: "Sequence[Identity]",
    settings: Settings,
    check_audit: CheckAudit,
    *,
    force: bool = False,
    pseudonym_key: Path | None = None,
    without_key: bool = False,
    progress: Progress = lambda *_: None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> tuple[Verified, Path | None]:
    """Makes the data folder of the settings, as the last backup of a chain has it.

    All is made and checked in a folder beside it, which gets its name at the end. Sessions of the
    page are ended.

    Args:
        force: move what is there out of the way first.
        pseudonym_key: the file of the key of pseudonyms, for a backup that lacks it.
        without_key: restore without that key.

    Returns what was restored, and where what was there before is now.

    Raises:
        BackupError: something is there already, or in use; the backups are not whole; the key of
            pseudonyms is missing, or another one. Nothing is changed then.
    """
    check_kind(settings)
    target = settings.data_dir.absolute()
    head = chain[-1].head
    _check_place(target, force=force)
    key = None if without_key else _key(chain[-1], settings, pseudonym_key)
    with _staging(target) as folder:
        found = rebuilt(chain, identities, folder, lambda _: True, progress)
        examine(folder, chain[-1], check_audit)
        if key is not None:
            write_atomically(folder / SECRETS[0], key, private=True)
        ledger = folder / "ledger.sqlite"
        if ledger.is_file():
            forget_sessions(ledger)
            _move_received(ledger, Path(head.root), target)
        # Of all files at once, which are many.
        os.sync()
        _check_place(target, force=force)
        before = _out_of_the_way(target, now()) if force else None
        _put(folder, target)
    return Verified(tuple(chain), found), before


def _check_place(target: Path, *, force: bool) -> None:
    if not target.parent.is_dir():
        raise BackupError(f"there is no folder {target.parent}; make it, or name another place")
    if os.path.ismount(target):
        raise BackupError(
            f"{target} is a mount point, which cannot be replaced in one step; restore into a "
            f"folder in it, as with --data-dir {target / 'data'}"
        )
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BackupError(f"{target} is no folder; name another place with --data-dir")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not force:
        raise BackupError(
            f"{target} is not empty, and a backup is restored into an empty place alone; name "
            "another one with --data-dir, or give --force, which renames what is there first"
        )
    for path in (*target.glob("*.lock"), target / "received" / "lock"):
        if is_held(path):
            raise BackupError(
                f"{target} is in use ({path.name} is locked); stop whatever uses it, then restore"
            )


def _key(backup: Backup, settings: Settings, file: Path | None) -> bytes | None:
    """The key of pseudonyms to write into the data folder; None = there is none to write.

    Raises:
        BackupError: it is missing, or another one.
    """
    head = backup.head
    if head.pseudonyms in ("backup", "none"):
        if file is not None:
            raise BackupError(
                f"{backup.path} needs no key of pseudonyms; leave --pseudonym-key out"
            )
        return None
    way_out = (
        "name the file of it with --pseudonym-key, or set PRECEDENT_PSEUDONYM_KEY; if it is lost, "
        "--without-key restores all the same, and patients indexed from then on are others"
    )
    if file is not None:
        try:
            found = file.read_bytes()
        except OSError as error:
            raise BackupError(
                f"--pseudonym-key {file} cannot be read ({error.strerror}); {way_out}"
            ) from None
        if pseudonyms_check(found) != head.pseudonyms_check:
            raise BackupError(f"--pseudonym-key {file} is another key; {way_out}")
        return found
    if settings.pseudonym_key is not None:
        found = settings.pseudonym_key.get_secret_value().encode()
        if pseudonyms_check(found) != head.pseudonyms_check:
            raise BackupError(f"PRECEDENT_PSEUDONYM_KEY is another key; {way_out}")
        return None
    raise BackupError(f"{backup.path} has not the key of its pseudonyms; {way_out}")


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A folder beside the target, to become it. Those that were left are removed."""
    begin = f".{target.name}{_STAGING}"
    for path in target.parent.glob(f"{begin}*"):
        with suppress(OSError):
            old = time.time() - path.stat().st_mtime > _BEGINNING_SECONDS
            if old and not is_held(path / "lock"):
                shutil.rmtree(path, ignore_errors=True)
    staging = target.parent / f"{begin}{uuid.uuid4().hex[:12]}"
    try:
        (staging / "data").mkdir(mode=0o700, parents=True)
        staging.chmod(0o700)
        handle = os.open(staging / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise BackupError(
            f"{target.parent} cannot be written to ({error.strerror}), and the archive is made "
            f"there; restore into a folder of a place that you may write to, as in --data-dir "
            f"{target / 'data'}"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield staging / "data"
    finally:
        os.close(handle)
        shutil.rmtree(staging, ignore_errors=True)


def _move_received(ledger: Path, before: Path, now: Path) -> None:
    """Instances that were received lie in the data folder: the ledger names where that is now."""
    for name in ("received", "tenants"):
        then, here = (f"{file_locator(root / name)}/" for root in (before, now))
        if then != here:
            moved(ledger, then, here)


def _out_of_the_way(target: Path, at: datetime) -> Path | None:
    """Renames what is there; returns its new name, None = nothing is there."""
    if not target.is_dir() or not any(target.iterdir()):
        return None
    before = target.with_name(f"{target.name}.before-{at:%Y%m%dT%H%M%S}")
    if before.exists():
        raise BackupError(f"{before} is there already; move it")
    target.rename(before)
    return before


def _put(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise BackupError(
            f"what was restored cannot be named {target} ({error.strerror}); see whether somebody "
            "writes there, and restore again"
        ) from None

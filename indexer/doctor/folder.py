"""Checks of the data folder: its user, who may read it, its keys, what is left in it, its disk."""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from engine.errors import StoreError
from engine.locks import is_held
from indexer.doctor.examined import Examined
from indexer.doctor.finding import Finding, parted

__all__ = ["check_deletions", "check_disk", "check_folder", "check_keys"]

_KEY_BYTES = 32
_MIB, _GIB = 1024**2, 1024**3
_ENOUGH = 4
"""Below so many times the least free space there is a warning."""
_FEW_FILES = 10_000


def check_folder(examined: Examined) -> Iterator[Finding]:
    """Whether the folder is there, of a layout that this version knows, and its user's alone."""
    folder = examined.data_dir.root
    thing = f"data folder {folder}"
    if not folder.is_dir():
        why = "is no folder" if folder.exists() else "is not there"
        yield Finding(
            "folder", "error", thing, f"it {why}",
            "name the right one with --data-dir or PRECEDENT_DATA_DIR, or make it with "
            "`precedent index PATH…`",
        )  # fmt: skip
        return
    try:
        examined.data_dir.in_force(served=examined.is_served)
    except StoreError as error:
        yield Finding("folder", "error", thing, *parted(error, "restore the file"))
        return
    found = folder.stat()
    if found.st_uid != os.geteuid():
        yield Finding(
            "folder.owner",
            "warning",
            thing,
            f"it is of the user {found.st_uid}, and this is the user {os.geteuid()}",
            "run all commands as the user of the service",
        )
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(
            "folder.access", "error", thing, "it cannot be read and written by this user",
            "run the command as the user of the service, or change its permissions",
        )  # fmt: skip
        return
    mode = stat.S_IMODE(found.st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield Finding(
            "folder.mode", "error", thing, f"others may write into it (mode {mode:04o})",
            f"chmod 700 {folder}",
        )  # fmt: skip
    elif mode & (stat.S_IROTH | stat.S_IXOTH):
        yield Finding(
            "folder.mode",
            "warning",
            thing,
            f"every user of the machine may look into it (mode {mode:04o}): thumbnails and the "
            "ledger are in it",
            f"chmod 700 {folder}",
        )
    else:
        yield Finding("folder", "ok", thing, f"mode {mode:04o}, as {_user(found.st_uid)}")


def _user(number: int) -> str:
    import pwd

    with suppress(KeyError):
        return pwd.getpwuid(number).pw_name
    return f"user {number}"


def check_keys(examined: Examined) -> Iterator[Finding]:
    """Whether the keys in the folder are whole, and their user's alone."""
    root = examined.data_dir.root
    wanted = examined.settings.pseudonym_key is None
    elsewhere = examined.settings.storage.thumbnails is not None
    with_images = (root / "thumbnails").is_dir()
    restored = "restore it from the backup: with another key patients indexed before are others"
    for name, needed in (
        ("pseudonym.key", wanted),
        ("embedding.key", False),
        ("erasure.key", False),
    ):
        path = root / name
        check, thing = f"keys.{name.partition('.')[0]}", str(path)
        way_out = restored if needed else "remove it: a new one is made"
        try:
            found, length = path.stat(), len(path.read_bytes())
        except FileNotFoundError:
            if needed and (examined.data_dir.ledger.is_file() if elsewhere else with_images):
                yield Finding(check, "error", thing, "it is missing", way_out)
            continue
        except OSError as error:
            yield Finding(
                check, "error", thing, f"it cannot be read ({error.strerror})",
                "run the command as the user of the service",
            )  # fmt: skip
            continue
        mode = stat.S_IMODE(found.st_mode)
        if length < _KEY_BYTES:
            yield Finding(check, "error", thing, f"{length} bytes, not {_KEY_BYTES}", way_out)
        elif mode & 0o077:
            yield Finding(
                check, "error", thing, f"others may read it (mode {mode:04o})", f"chmod 600 {path}"
            )
        else:
            yield Finding(check, "ok", thing, f"{length} bytes, mode {mode:04o}")


def check_disk(examined: Examined) -> Iterator[Finding]:
    """Whether the disk has room, in bytes and in files."""
    folder = examined.data_dir.root
    if not folder.is_dir():
        return
    settings = examined.settings
    least, setting = max(
        (settings.indexing.min_free_bytes, "indexing.min_free_bytes"),
        (
            settings.receive.min_free_bytes if settings.server.receive else 0,
            "receive.min_free_bytes",
        ),
    )
    usage, thing = shutil.disk_usage(folder), f"disk of {folder}"
    told = f"{usage.free / _GIB:,.1f} of {usage.total / _GIB:,.1f} GiB free"
    limit = f"{setting} asks for {least / _MIB:,.0f} MiB"
    room = "make room, or move the folder to a larger disk"
    if usage.free < least:
        yield Finding("disk", "error", thing, f"{told}; {limit}", f"{room}: indexing has stopped")
    elif usage.free < _ENOUGH * least:
        yield Finding("disk", "warning", thing, f"{told}; {limit}", f"{room} soon")
    else:
        yield Finding("disk", "ok", thing, told)
    counted = os.statvfs(folder)
    if counted.f_files > 0 and counted.f_favail < _FEW_FILES:
        yield Finding(
            "disk.files",
            "error" if counted.f_favail == 0 else "warning",
            thing,
            f"room for {counted.f_favail:,} further files, of which each image takes one",
            "move the folder to a disk with more inodes",
        )


def check_deletions(examined: Examined) -> Iterator[Finding]:
    """Whether a deletion was cut short that nobody brings to its end."""
    left = [path for path in _notes(examined.data_dir.root / "deletions") if not is_held(path)]
    if left:
        yield Finding(
            "deletions",
            "warning",
            "deletions",
            f"{len(left)} cut short: what was to go may still be found",
            "a running `precedent serve`, or the next command that opens the archive, ends them",
        )
    begun = _notes(examined.data_dir.erasures / "under-way")
    if begun and not is_held(examined.data_dir.erasing_lock):
        yield Finding(
            "deletions.erasures",
            "warning",
            "erasures",
            f"{len(begun)} cut short: files still have what was to go",
            "`precedent erase --resume`, or the rule's next `precedent retention --apply`",
        )


def _notes(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError):
            json.loads(path.read_bytes())
            found.append(path)
    return found

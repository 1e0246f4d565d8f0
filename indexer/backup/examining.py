"""Checks what is in a backup: whether the databases open, and have what it says."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import BackupError
from engine.store.columns import STATE
from engine.store.edge_layout import COLUMNS, EPOCH
from indexer.backup.chain import Backup
from indexer.backup.database_copy import counted, damage_of
from indexer.backup.head import Head
from indexer.backup.making import Progress
from indexer.backup.rebuilding import Rebuilt, rebuilt
from indexer.backup.taking import SECRETS, pseudonyms_check

if TYPE_CHECKING:
    from pyrage.x25519 import Identity

__all__ = ["CheckAudit", "Verified", "examine", "verify"]

CheckAudit = Callable[[Path, Mapping[str, tuple[int, str]]], Sequence[str]]
"""What is wrong with an audit log in a file, given the heads of its chains."""
_GONE = "gone"


@dataclass(frozen=True, slots=True)
class Verified:
    """A chain of backups that is whole."""

    chain: tuple[Backup, ...]
    rebuilt: Rebuilt

    @property
    def head(self) -> Head:
        """Of the last backup: what a restored archive will be."""
        return self.chain[-1].head


def verify(
    chain: Sequence[Backup],
    identities: "Sequence[Identity]",
    check_audit: CheckAudit,
    progress: Progress = lambda *_: None,
) -> Verified:
    """Reads a full backup and its increments to their ends, and checks every byte, the databases
    and the counts. The databases are made in the folder for temporary files (TMPDIR).

    Raises:
        BackupError: something is wrong; the message names it.
    """
    head = chain[-1].head

    def wanted(path: str) -> bool:
        part, _, inner = path.partition("/")
        if part == head.index:
            return inner == EPOCH or (
                inner.startswith(f"{COLUMNS}/") and inner.endswith((f"/{STATE}", f"/{_GONE}"))
            )
        return path in ("ledger.sqlite", "audit.sqlite", *SECRETS)

    with tempfile.TemporaryDirectory(prefix="precedent-verify-") as scratch:
        folder = Path(scratch) / "data"
        folder.mkdir(mode=0o700)
        found = rebuilt(chain, identities, folder, wanted, progress)
        examine(folder, chain[-1], check_audit)
    return Verified(tuple(chain), found)


def examine(folder: Path, backup: Backup, check_audit: CheckAudit) -> None:
    """Checks databases, index and keys of a restored archive that nobody has opened yet.

    Raises:
        BackupError: something is wrong; the message names it.
    """
    head = backup.head
    ledger, audit = folder / "ledger.sqlite", folder / "audit.sqlite"
    for file in (ledger, audit):
        damage = damage_of(file) if file.is_file() else None
        if damage is not None:
            raise _wrong(backup, f"{file.name} is damaged ({damage})")
    points = None if head.index is None else _points(folder / head.index, backup)
    found = counted(ledger, audit, points)
    for name in ("points", "instances", "keys", "audit_rows", "audit_heads"):
        there, told = getattr(found, name), getattr(head.counts, name)
        if there != told:
            raise _wrong(backup, f"its {name.replace('_', ' ')} are {there}, not {told}")
    if audit.is_file():
        flaws = check_audit(audit, head.counts.audit_heads)
        if flaws:
            raise _wrong(backup, f"audit.sqlite, {flaws[0]}")
    key = folder / SECRETS[0]
    found_key = key.read_bytes() if key.is_file() else b""
    if head.pseudonyms == "backup" and pseudonyms_check(found_key) != head.pseudonyms_check:
        raise _wrong(backup, f"{key.name} is not the key of its pseudonyms")


def _points(index: Path, backup: Backup) -> int:
    """How many points the columns of an index have."""
    try:
        state = json.loads((index / COLUMNS / STATE).read_bytes())
        gone = np.fromfile(index / COLUMNS / str(state["generation"]) / _GONE, np.uint32)
        if state["epoch"] != (index / EPOCH).read_text() or len(gone) < state["rows"]:
            raise _wrong(backup, "the columns of its index are of another time")
        return int(np.count_nonzero(gone[: state["rows"]] == 0))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _wrong(
            backup, f"the columns of its index cannot be read ({type(error).__name__})"
        ) from None


def _wrong(backup: Backup, what: str) -> BackupError:
    return BackupError(f"{backup.path}: {what}; take another backup")

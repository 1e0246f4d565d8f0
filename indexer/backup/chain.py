"""Which backups belong together: a full one and its increments, in order."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import BackupError
from indexer.backup.container import HEAD, Members
from indexer.backup.head import Head
from indexer.backup.noted import LARGEST_HEAD
from indexer.backup.sealing import is_sealed, opened

if TYPE_CHECKING:
    from pyrage.x25519 import Identity

__all__ = ["Backup", "chain_of", "chains_of"]

_TAR_NAME = HEAD.encode() + b"\0"


@dataclass(frozen=True, slots=True)
class Backup:
    """A file that is a backup, and what it says of itself."""

    path: Path
    head: Head


def chains_of(named: Sequence[Path], identities: "Sequence[Identity]") -> list[list[Backup]]:
    """The backups that are named, in the order in which they are restored: each full one with its
    increments. A folder stands for all backups in it. Of an increment alone, those that it needs
    are looked for beside it.

    Raises:
        BackupError: one is no backup, or needs one that is not there.
    """
    files: dict[Path, None] = {}
    for path in named:
        if path.is_dir():
            found = [one for one in sorted(path.iterdir()) if _is_backup(one)]
            if not found:
                raise BackupError(f"there is no backup in {path}; name another folder, or a file")
            files |= dict.fromkeys(found)
        else:
            files[path] = None
    backups = [Backup(path, _head(path, identities)) for path in files]
    if len(backups) == 1 and backups[0].head.since is not None:
        backups = [*_needed(backups[0], identities), backups[0]]
    by_full: dict[str, list[Backup]] = {}
    for one in backups:
        by_full.setdefault(one.head.full, []).append(one)
    return [_ordered(some) for some in by_full.values()]


def chain_of(named: Sequence[Path], identities: "Sequence[Identity]") -> list[Backup]:
    """The one chain that is named.

    Raises:
        BackupError: there are several; or as for :func:`chains_of`.
    """
    chains = chains_of(named, identities)
    if len(chains) > 1:
        ends = ", ".join(str(one[-1].path) for one in chains)
        raise BackupError(
            f"these are backups of {len(chains)} full ones, which end with {ends}; name one, with "
            "its increments"
        )
    return chains[0]


def _ordered(backups: Sequence[Backup]) -> list[Backup]:
    """A full backup and its increments, one after another."""
    by_since: dict[str | None, Backup] = {}
    for one in backups:
        other = by_since.get(one.head.since)
        if other is not None:
            raise BackupError(
                f"{one.path} and {other.path} take the place of each other: both follow the same "
                "backup; name one of them"
            )
        by_since[one.head.since] = one
    chain: list[Backup] = []
    following = by_since.pop(None, None)
    while following is not None:
        chain.append(following)
        following = by_since.pop(following.head.id, None)
    if by_since:
        lost = min(by_since.values(), key=lambda one: one.head.number)
        raise BackupError(
            f"{lost.path} is increment {lost.head.number} of another backup than those named, or "
            f"the one before it is missing (its id is {lost.head.since}); name all of its chain"
        )
    if any(one.head.number != number for number, one in enumerate(chain)):
        raise BackupError(f"the increments up to {chain[-1].path} are not numbered one by one")
    return chain


def _needed(last: Backup, identities: "Sequence[Identity]") -> list[Backup]:
    """The backups beside an increment that it is restored on."""
    there: dict[str, Backup] = {}
    for path in sorted(last.path.absolute().parent.iterdir()):
        if _is_backup(path):
            with suppress(BackupError):
                head = _head(path, identities)
                there[head.id] = Backup(path, head)
    found: list[Backup] = []
    wanted = last.head.since
    while wanted is not None and wanted in there and there[wanted] not in found:
        found.insert(0, there[wanted])
        wanted = there[wanted].head.since
    if wanted is not None:
        raise BackupError(
            f"{last.path} is an increment, and a backup that it needs is not beside it (its id is "
            f"{wanted}); name all of its chain"
        )
    return found


def _is_backup(path: Path) -> bool:
    if path.name.startswith(".") or not path.is_file():
        return False
    with suppress(BackupError, OSError):
        if is_sealed(path):
            return True
        with path.open("rb") as file:
            return file.read(len(_TAR_NAME)) == _TAR_NAME
    return False


def _head(path: Path, identities: "Iterable[Identity]") -> Head:
    with opened(path, list(identities)) as stream:
        first = next(iter(Members(stream, str(path))), None)
        if first is None or first.name != HEAD:
            raise BackupError(f"{path} is no backup; name a file of `precedent backup create`")
        return Head.read(first.whole(LARGEST_HEAD), str(path))

"""``precedent backup …``: makes, verifies and restores backups of an embedded archive."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.accesses import note, record_before
from api.cli.options import DataDirOption, JsonOption, ModelOption, check_writable, write_json
from engine.errors import QueryError
from engine.settings import load_settings

if TYPE_CHECKING:
    from indexer.backup.chain import Backup
    from indexer.backup.examining import Verified

__all__ = ["backup"]

backup = typer.Typer(
    help="Make, verify and restore backups of an embedded archive.", no_args_is_help=True
)

_EVERY_SECONDS = 5.0
_FilesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE…",
        help="Backups: a full one and its increments, in any order, or their folder. Of the last "
        "increment alone, the others are looked for beside it.",
    ),
]
_IdentityOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--identity", metavar="FILE", help="File of a secret key that opens them; repeatable."
    ),
]


@backup.command()
def create(
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    since: Annotated[
        Path | None,
        typer.Option(metavar="PREVIOUS", help="Store only what has changed since this backup."),
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Encrypt it to this public key of age (age1…), or to those in a file; repeatable.",
        ),
    ] = None,
    received: Annotated[
        bool, typer.Option("--received/--no-received", help="With what was received and is kept.")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file if it is there already.")
    ] = False,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write everything that a restore needs to one file, as of one moment.

    Indexing, deleting and searching go on; writes wait while the index is copied. Without --to the
    file is not encrypted, and the keys in the data folder are left out of it.
    """
    from indexer.backup.making import make
    from indexer.backup.sealing import read_recipients

    recipients = read_recipients(to or [])
    check_writable(file, "FILE", file=True)
    if os.path.lexists(file) and not force:
        raise QueryError(
            f"FILE is {str(file)!r}, which is there already; name another, or replace it with "
            "--force"
        )
    if since is not None and since.exists() and file.exists() and since.samefile(file):
        raise QueryError(
            f"FILE is {str(file)!r}, and --since too; an increment is of no use without the backup "
            "before it: name another FILE"
        )
    settings = load_settings(data_dir=data_dir, model=model)
    record_before()
    told = _Told()
    made = make(settings, file, since=since, to=recipients, received=received, progress=told)
    head = made.head
    note(backup=head.id)
    if as_json:
        write_json(
            {
                "file": str(file),
                "id": head.id,
                "since": head.since,
                "number": head.number,
                "at": head.at,
                "encrypted": bool(recipients),
                "secrets": head.secrets,
                "received": head.received,
                "size": made.size,
                "files": made.files,
                "file_bytes": made.file_bytes,
                "stored_bytes": made.stored_bytes,
                "seconds": round(told.seconds, 3),
                "counts": _counts(head.counts),
                "left_out": list(made.unknown),
            }
        )
        return
    kind = "full backup" if head.since is None else f"increment {head.number}"
    typer.echo(
        f"{kind} of {_of(head.counts)}: {made.files:,} files, {_size(made.file_bytes)}, of which "
        f"{_size(made.stored_bytes)} stored; {_size(made.size)} in {told.seconds:,.1f} s: {file}"
    )
    if head.pseudonyms == "apart":
        _say(
            "it is not encrypted, so that pseudonym.key is not in it: keep a copy of that apart, "
            "or give --to"
        )
    elif head.pseudonyms == "settings":
        _say("the key of pseudonyms is in the settings, and not in it: keep a copy of that")
    if (thumbnails := settings.storage.thumbnails) is not None:
        _say(f"thumbnails are in {thumbnails}, and not in it: keep a copy of these apart")
    if made.unknown:
        _say(f"left out, as it is none of ours: {', '.join(made.unknown)}")


@backup.command()
def verify(
    files: _FilesArgument,
    identity: _IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read backups to their ends, and check every byte, the databases in them and the counts.

    The exit code is 1 if anything is wrong, and the message names it.
    """
    from indexer.backup.chain import chains_of
    from indexer.backup.examining import verify as verified
    from indexer.backup.sealing import read_identities

    told = _Told()
    identities = read_identities(identity or [])
    found = [
        verified(chain, identities, _audit_flaws, told) for chain in chains_of(files, identities)
    ]
    if as_json:
        chains = [_document(one) for one in found]
        write_json({"chains": chains, "seconds": round(told.seconds, 3)})
        return
    for one in found:
        _list(one.chain)
        typer.echo(
            f"whole: {_of(one.head.counts)}; {one.rebuilt.files:,} files, "
            f"{_size(one.rebuilt.bytes)}, as of {one.head.at}; read {_size(one.rebuilt.read)} in "
            f"{told.seconds:,.1f} s"
        )


@backup.command()
def restore(
    files: _FilesArgument,
    identity: _IdentityOption = None,
    pseudonym_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The key of pseudonyms, for backups that are not encrypted."
        ),
    ] = None,
    without_key: Annotated[
        bool,
        typer.Option("--without-key", help="Restore though the key of pseudonyms is lost."),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Rename the data folder that is there, and restore."),
    ] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the data folder from backups, where nothing is yet: all of it, or nothing.

    Everything is verified before it gets its name.
    """
    from indexer.backup.chain import chain_of
    from indexer.backup.restoring import restore as restored
    from indexer.backup.sealing import read_identities

    settings = load_settings(data_dir=data_dir)
    identities = read_identities(identity or [])
    told = _Told()
    found, before = restored(
        chain_of(files, identities),
        identities,
        settings,
        _audit_flaws,
        force=force,
        pseudonym_key=pseudonym_key,
        without_key=without_key,
        progress=told,
    )
    note(backup=found.head.id)
    if as_json:
        write_json(
            {
                **_document(found),
                "data_dir": str(settings.data_dir),
                "before": None if before is None else str(before),
                "seconds": round(told.seconds, 3),
            }
        )
        return
    _list(found.chain)
    typer.echo(
        f"restored {_of(found.head.counts)} as of {found.head.at}: {found.rebuilt.files:,} files, "
        f"{_size(found.rebuilt.bytes)}, in {told.seconds:,.1f} s: {settings.data_dir}"
    )
    if before is not None:
        _say(f"what was there before is now {before}")
    if not found.head.received:
        _say("what was received and kept is not in it")


@backup.command()
def key(
    file: Annotated[Path, typer.Argument(help="The file to write the secret key to.")],
) -> None:
    """Make a pair of keys: the secret one in a file, to be kept apart; the public one for --to."""
    from indexer.backup.sealing import make_key

    public = make_key(file)
    typer.echo(public)
    _say(f"{file} alone opens what is encrypted to it: keep it where the backups are not")


class _Told:
    """Says on standard error, once in a while, how far something is."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._begun

    def __call__(self, files: int, count: int, what: str) -> None:
        now = time.monotonic()
        if now - self._last >= _EVERY_SECONDS:
            self._last = now
            _say(f"{what}: {files:,} files, {_size(count)}, {self.seconds:,.0f} s")


def _audit_flaws(file: Path, heads: Mapping[str, tuple[int, str]]) -> Sequence[str]:
    from sqlalchemy import URL

    from api.audit.log import AuditLog
    from api.audit.rows import Head
    from api.audit.schema import AUDIT
    from api.audit.verify import verify as verified
    from indexer.ledger.database import Database

    place = URL.create("sqlite", database=str(file))
    known = {chain: Head(chain, seq, digest) for chain, (seq, digest) in heads.items()}
    with Database(place, AUDIT, reads_only=True) as database:
        return [str(flaw) for flaw in verified(AuditLog(database), known).flaws]


def _document(found: "Verified") -> dict[str, Any]:
    head = found.head
    return {
        "backups": [
            {
                "file": str(one.path),
                "id": one.head.id,
                "since": one.head.since,
                "number": one.head.number,
                "at": one.head.at,
            }
            for one in found.chain
        ],
        "at": head.at,
        "versions": head.versions,
        "files": found.rebuilt.files,
        "file_bytes": found.rebuilt.bytes,
        "secrets": head.secrets,
        "received": head.received,
        "counts": _counts(head.counts),
        "settings": head.settings,
    }


def _counts(counts: Any) -> dict[str, Any]:
    return {
        "points": counts.points,
        "instances": counts.instances,
        "keys": counts.keys,
        "audit_rows": counts.audit_rows,
        "audit_heads": {
            chain: {"seq": seq, "hash": digest}
            for chain, (seq, digest) in counts.audit_heads.items()
        },
    }


def _of(counts: Any) -> str:
    states = ", ".join(f"{count:,} {state}" for state, count in counts.instances.items())
    return (
        f"{counts.points or 0:,} points, instances: {states or 'none'}, {counts.keys:,} keys, "
        f"{counts.audit_rows:,} rows of the audit log"
    )


def _list(chain: "Sequence[Backup]") -> None:
    for one in chain:
        kind = "full" if one.head.since is None else f"increment {one.head.number}"
        typer.echo(f"{one.path}: {kind}, {one.head.at}, Precedent {one.head.versions['precedent']}")


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def _say(text: str) -> None:
    sys.stderr.write(f"precedent: {text}\n")
    sys.stderr.flush()

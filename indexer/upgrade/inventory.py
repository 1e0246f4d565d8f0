"""Lists every stored thing of an archive with its version. It only reads, and locks nothing."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import URL, inspect, make_url
from sqlalchemy.exc import ArgumentError

from engine.errors import LedgerError, PrecedentError
from engine.settings import Settings
from indexer.datadir.layout import FIRST_INDEX, FORMAT as FOLDER_FORMAT, DataDir
from indexer.datadir.models import model_directory
from indexer.ledger.database import Database
from indexer.ledger.migrations import LEDGER, Tables, revision_of, revisions

__all__ = ["Outcome", "Stored", "index_folders", "inventory", "ledger_place"]

Outcome = Literal["nothing", "migrated", "rebuilt", "refused"]
_LATER = "a later version of Precedent wrote it; install that version or a later one"
_NO_VERSION = "1"
"""What is taken for the version of a thing that was written before it had one."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored thing.

    thing: its stable name, as in "ledger". place: its file, folder, database or collection, without
    secrets. found: its version; None = it cannot be told. known: the version that this release
    writes. outcome: what becomes of it; "migrated" = it is rewritten, "rebuilt" = it is made again
    from something else, "refused" = this release does not open it. how: what that means, and for
    a refused one the way out; "" = nothing is to be said.
    """

    thing: str
    place: str
    found: str | None
    known: str
    outcome: Outcome = "nothing"
    how: str = ""


def inventory(settings: Settings, audit: tuple[Tables, Path | None]) -> list[Stored]:
    """Every stored thing of the archive of these settings that is there, in the order in which it
    is brought up.

    What is made anew at any time, as limits of requests and locks, is no part of it; pictures, keys
    and what was received have the version of the data folder.

    Args:
        audit: tables of the audit log, and their file; None = they are in the ledger's database.
    """
    data_dir = DataDir(settings.data_dir)
    found: list[Stored] = []
    if data_dir.exists:
        found += _of_folder(data_dir)
    found += _of_databases(settings, data_dir, audit)
    found += _of_served(settings) if settings.store.url else _of_embedded(data_dir)
    found += _of_models(settings, data_dir)
    found += _of_notes(data_dir)
    return found


def index_folders(data_dir: DataDir) -> list[Path]:
    """The folders of the embedded indexes that are kept: the one in force, and the one before it.

    Raises:
        StoreError: the file that names them cannot be read.
    """
    noted = data_dir.in_force()
    names = [FIRST_INDEX] if noted is None else [noted.index]
    if noted is not None and noted.previous is not None:
        names.append(noted.previous.index)
    return [data_dir.root / name for name in names]


def ledger_place(settings: Settings, data_dir: DataDir) -> URL:
    """Where the ledger is.

    Raises:
        LedgerError: the settings name no database.
    """
    url = settings.ledger.url
    if url is None:
        return URL.create("sqlite", database=str(data_dir.ledger))
    try:
        return make_url(url.get_secret_value())
    except (ArgumentError, ValueError):
        # The error quotes the address, with its password.
        raise LedgerError(
            "the URL of the ledger's database cannot be read; write it in PRECEDENT_LEDGER__URL as "
            'in "postgresql+psycopg://user@host/database"'
        ) from None


def _of_folder(data_dir: DataDir) -> Iterator[Stored]:
    folder, known = str(data_dir.about), str(FOLDER_FORMAT)
    if not data_dir.about.is_file():
        how = "the file is made: so far the folder says nothing, which is version 1"
        yield Stored("data folder", folder, "none", known, "migrated", how)
    else:
        yield _of_document("data folder", data_dir.about, FOLDER_FORMAT)
    for served in (False, True):
        path = data_dir.pointer(served=served)
        if path.is_file():
            yield _of_document("index in force", path, 1)


def _of_document(thing: str, path: Path, known: int, how: str = "") -> Stored:
    """A JSON document whose "format" is its version. how: what becomes of an earlier one."""
    try:
        found = json.loads(path.read_bytes()).get("format", 1)
    except FileNotFoundError:
        # It went while its folder was listed.
        return Stored(thing, str(path), str(known), str(known))
    except (OSError, ValueError, AttributeError) as error:
        return _unreadable(thing, path, str(known), type(error).__name__)
    if not isinstance(found, int) or not 1 <= found <= known:
        return Stored(thing, str(path), str(found), str(known), "refused", _LATER)
    outcome: Outcome = "migrated" if found < known and how else "nothing"
    return Stored(
        thing, str(path), str(found), str(known), outcome, how if outcome == "migrated" else ""
    )


def _unreadable(thing: str, path: object, known: str, why: str) -> Stored:
    how = f"it cannot be read ({why}); `precedent doctor` says what to do"
    return Stored(thing, str(path), None, known, "refused", how)


def _of_databases(
    settings: Settings, data_dir: DataDir, audit: tuple[Tables, Path | None]
) -> Iterator[Stored]:
    ledger = ledger_place(settings, data_dir)
    tables, file = audit
    elsewhere = ledger if file is None else URL.create("sqlite", database=str(file))
    for which, place in ((LEDGER, ledger), (tables, elsewhere)):
        shown = str(place.database) if place.drivername.startswith("sqlite") else "PostgreSQL"
        if place.drivername.startswith("sqlite") and not Path(shown).is_file():
            continue
        try:
            with Database(place, which, reads_only=True) as database:
                one = _of_database(database, which, shown)
        except PrecedentError as error:
            yield Stored(which.name, shown, None, which.head, "refused", str(error))
            continue
        if one is not None:
            yield one


def _of_database(database: Database, tables: Tables, shown: str) -> Stored | None:
    """None = its tables are not there yet."""
    with database.begin(read=True) as connection:
        there = set(inspect(connection).get_table_names())
        if tables.version_table in there:
            found = revision_of(connection, tables)
        elif there & set(tables.early):
            found = None  # of before revisions were recorded
        else:
            return None
    if found is not None and found not in revisions(tables):
        return Stored(tables.name, shown, found, tables.head, "refused", _LATER)
    if found != tables.head:
        how = "its tables are migrated, in one transaction"
        return Stored(tables.name, shown, found or "none", tables.head, "migrated", how)
    return Stored(tables.name, shown, found, tables.head)


def _of_embedded(data_dir: DataDir) -> Iterator[Stored]:
    from engine.store.columns import FORMAT as COLUMNS_FORMAT, STATE
    from engine.store.edge_exchange import in_exchange
    from engine.store.edge_layout import COLLECTION, COLUMNS, FORMAT, WITH_WORDS

    try:
        folders = index_folders(data_dir)
    except PrecedentError:
        return  # told by the version of the folder, or of the document that names them
    for folder in folders:
        if in_exchange(folder):
            how = "its conversion was cut short, and is done again"
            yield Stored("index", str(folder), _NO_VERSION, str(FORMAT), "migrated", how)
            continue
        if not (folder / COLLECTION).is_file():
            continue
        how = "it is written anew beside itself, and put in its own place when that is whole"
        index = _of_document("index", folder / COLLECTION, FORMAT, how)
        if index.found == str(WITH_WORDS) and _has_words(folder / COLLECTION):
            # Not a later one, but that of an index with a second vector.
            index = replace(index, known=index.found, outcome="nothing", how="")
        yield index
        state = folder / COLUMNS / STATE
        known = str(COLUMNS_FORMAT)
        if index.outcome != "nothing":
            continue  # the columns are made with it
        columns = _of_document("columns", state, COLUMNS_FORMAT)
        if not state.is_file() or columns.outcome == "refused":
            # They are derived, so that whatever is there can be made again.
            how = "they are made again from the index; no image is read"
            found = columns.found if state.is_file() else "none"
            columns = Stored("columns", str(state), found, known, "rebuilt", how)
        yield columns


def _has_words(path: Path) -> bool:
    """Whether the index that this document describes has a second vector."""
    return json.loads(path.read_bytes()).get("words") is not None


def _of_served(settings: Settings) -> Iterator[Stored]:
    from engine.store.opening import connected
    from engine.store.server_collection import in_force
    from engine.store.server_layout import FORMAT, WITH_WORDS, noted

    place = f"collection {settings.store.collection!r}"
    try:
        # Asked once, and not for minutes.
        hasty = settings.store.model_copy(update={"attempts": 1})
        with connected(hasty) as connection:
            name = in_force(connection)
            if name is None:
                return
            place = f"collection {name!r}"
            info = connection.ask(connection.client.get_collection, name)
        known = noted(info, place)
    except PrecedentError as error:
        yield Stored("index", place, None, str(FORMAT), "refused", str(error))
        return
    if known is None:
        how = "Precedent did not make it; name another one with PRECEDENT_STORE__COLLECTION"
        yield Stored("index", place, None, str(FORMAT), "refused", how)
    else:
        # Each kind of collection has had one format.
        number = str(FORMAT if known.collection.words is None else WITH_WORDS)
        yield Stored("index", place, number, number)


def _of_models(settings: Settings, data_dir: DataDir) -> Iterator[Stored]:
    from engine.model.manifest import FORMAT, MANIFEST

    try:
        used: Sequence[Path] = [model_directory(settings)]
    except PrecedentError:
        used = []  # told by what names it
    kept = sorted(data_dir.models.iterdir()) if data_dir.models.is_dir() else []
    for folder in dict.fromkeys([*used, *kept]):
        if (folder / MANIFEST).is_file():
            yield _of_document("model", folder / MANIFEST, FORMAT)
        yield from _of_tensors(folder)


def _of_tensors(folder: Path) -> Iterator[Stored]:
    """The calibration and the decoder beside a model, whose version is in their heads."""
    from engine.model.decoder import DECODER, FORMAT
    from engine.ood.calibration import CALIBRATION, FORMATS

    for thing, name, known, how in (
        ("calibration", CALIBRATION, FORMATS, "calibrate again, or delete it"),
        ("decoder", DECODER, (FORMAT,), "train it again, or delete it"),
    ):
        path = folder / name
        if not path.is_file():
            continue
        try:
            found = str(_head(path).get("format", _NO_VERSION))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            yield _unreadable(thing, path, known[-1], type(error).__name__)
            continue
        if found in known:
            said = "" if found == known[-1] else "it is read as it is"
            yield Stored(thing, str(path), found, known[-1], "nothing", said)
        else:
            otherwise = f"another version of Precedent wrote it; install that one, {how}"
            yield Stored(thing, str(path), found, known[-1], "refused", otherwise)


def _head(path: Path) -> dict[str, Any]:
    """The metadata of a file of safetensors, without loading a tensor. Raises ValueError: it has
    no such head."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("its head is longer than it")
        found = json.loads(file.read(length))
    return dict(found.get("__metadata__", {}))


def _of_notes(data_dir: DataDir) -> Iterator[Stored]:
    """What is under way. Of the notes of one kind those that are refused, and one of the others."""
    outbox = data_dir.root / "outbox"
    for thing, folders, known in (
        ("deletion under way", [data_dir.root / "deletions"], 1),
        ("erasure under way", [data_dir.erasures / "under-way"], 1),
        ("sending", [outbox, outbox / "asked", outbox / "ended"], 2),
    ):
        notes = [path for folder in folders for path in sorted(folder.glob("*.json"))]
        seen = [_of_document(thing, path, known) for path in notes]
        yield from (one for one in seen if one.outcome == "refused")
        yield from [one for one in seen if one.outcome == "nothing"][:1]

"""``precedent profile``, ``snapshot`` and ``restore``: arrange, save and fill the index."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress

from api.cli.accesses import note, record_before
from api.cli.options import DataDirOption, JsonOption, ModelOption, check_writable, write_json
from engine.errors import QueryError
from engine.settings import load_settings
from engine.store.base import Collection, Filter, Profile, VectorStore

__all__ = ["profile", "restore", "snapshot"]

_GRAPHS = ("hash", "precise")


def profile(
    graph: Annotated[
        str | None, typer.Argument(help="'hash' or 'precise'; left out: only say what it is.")
    ] = None,
    quantised: Annotated[
        bool, typer.Option("--quantised/--not-quantised", help="With eight-bit copies.")
    ] = False,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change how the index is arranged: without an HNSW graph (hash) or with one (precise).

    No image is read again. With millions of images a graph takes minutes to build.
    """
    with _store(data_dir, model, create=False) as store:
        if graph is not None:
            if graph not in _GRAPHS:
                raise QueryError(f"profile is {graph!r}; use one of {', '.join(_GRAPHS)}")
            store.arrange(Profile("precise" if graph == "precise" else "hash", quantised))
        found, images = store.profile, store.count(Filter())
    if as_json:
        write_json({**asdict(found), "images": images})
    else:
        words = f"{found.graph}, {'quantised' if found.quantised else 'not quantised'}"
        Console().print(f"{words}; {images:,} images", highlight=False)


def snapshot(
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file if it is there already.")
    ] = False,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write all points of the index to one file, from which any other index can be filled.

    It does not hold ledger, thumbnails and pseudonym key: copy these from the data folder too. A
    file that is there already is kept, unless --force is given.
    """
    from api.security.seen import Seen
    from engine.store.snapshot import write_snapshot

    check_writable(file, "FILE", file=True)
    if os.path.lexists(file) and not force:
        raise QueryError(
            f"FILE is {str(file)!r}, which is there already; name another, or replace it with "
            "--force"
        )
    record_before()
    with _store(data_dir, model, create=False) as store, _progress("written") as progress:
        count = write_snapshot(store, file, progress)
    note(Seen(results=count))
    _print_count("written", count, file, as_json=as_json)


def restore(
    file: Annotated[Path, typer.Argument(help="A file that `precedent snapshot` wrote.")],
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add the points of a snapshot to the index, and make the index if there is none.

    With PRECEDENT_STORE__URL set, this fills an index on a Qdrant server.
    """
    from api.security.seen import Seen
    from engine.store.snapshot import described, restore_snapshot

    made_in = described(file).precision
    with (
        _store(data_dir, model, create=True, precision=made_in) as store,
        _progress("restored") as progress,
    ):
        count = restore_snapshot(file, store, progress)
    note(Seen(results=count))
    _print_count("restored", count, file, as_json=as_json)


@contextmanager
def _store(
    data_dir: Path | None,
    model: Path | None,
    *,
    create: bool,
    precision: Literal["fp32", "bf16"] | None = None,
) -> Iterator[VectorStore]:
    """Opens only the index, without loading model or ledger.

    create: make it if there is none. precision: recorded in an index that is made.
    """
    from engine.model.manifest import read_manifest
    from engine.store.opening import open_store
    from indexer.datadir.layout import DataDir
    from indexer.datadir.models import model_directory
    from indexer.datadir.write_lock import writing

    settings = load_settings(data_dir=data_dir, model=model)
    manifest = read_manifest(model_directory(settings))
    collection = Collection(
        manifest.fingerprint, manifest.dim, manifest.bits, precision, manifest.words_dim
    )
    place = DataDir(settings.data_dir)
    if create:
        place.make()
    with ExitStack() as held:
        if create:
            held.enter_context(writing(place.root))
        # All that is done here may take hours.
        yield held.enter_context(
            open_store(settings, place.index, collection, create=create, patient=True)
        )


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    errors = Console(stderr=True)
    with Progress(console=errors, disable=not errors.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print_count(what: str, count: int, file: Path, *, as_json: bool) -> None:
    if as_json:
        write_json({what: count})
    else:
        Console().print(f"{count:,} images {what}: {file}", highlight=False, soft_wrap=True)

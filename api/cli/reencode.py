"""``precedent reencode``: encodes an archive with another model, while it stays in use."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from api.cli.options import DataDirOption, JsonOption, write_json
from engine.errors import QueryError
from engine.settings import Settings, load_settings

if TYPE_CHECKING:
    from indexer.reencoding.reencode import ReencodingReport

__all__ = ["print_reencoded", "reencode"]

_SHIPPED = "shipped"


def reencode(
    model: Annotated[
        str | None, typer.Option(help=f"Folder of a checkpoint, or {_SHIPPED!r}.", metavar="DIR")
    ] = None,
    back: Annotated[
        bool, typer.Option("--back", help="Return to the index that was in force before.")
    ] = False,
    drop_previous: Annotated[
        bool, typer.Option("--drop-previous", help="Remove what is kept beside the index.")
    ] = False,
    leave_out: Annotated[
        bool,
        typer.Option("--leave-out", help="Do without instances that cannot be read any more."),
    ] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encode the archive with another model, and then replace the index.

    Searches and indexing go on meanwhile. Stop it at any time; the same command goes on. The
    previous index is kept until --drop-previous; --back returns to it. If only the calibration of
    the model differs, no image is read again.
    """
    from engine.model.manifest import SHIPPED
    from indexer.reencoding.reencode import drop_previous as drop, go_back, reencode as encode_anew

    if [model is not None, back, drop_previous].count(True) != 1:
        raise QueryError("say what to do: --model DIR, --back or --drop-previous")
    settings = load_settings(data_dir=data_dir)
    if drop_previous:
        names = drop(settings)
        if as_json:
            write_json({"removed": names})
        else:
            _print(f"removed: {', '.join(names) or 'nothing, none was kept'}")
        return
    from api.cli.terminal import indexing_progress

    errors = Console(stderr=True)
    with indexing_progress(errors, shown=errors.is_terminal and not as_json) as progress:
        if model is None:
            report = go_back(settings, leave_out=leave_out, progress=progress)
        else:
            folder = SHIPPED if model == _SHIPPED else Path(model)
            report = encode_anew(settings, folder, leave_out=leave_out, progress=progress)
    if as_json:
        write_json(asdict(report))
        return
    print_reencoded(report, settings)


def print_reencoded(report: "ReencodingReport", settings: Settings) -> None:
    """Prints what is in force now, what is kept, and what is left to do."""
    if report.previous is None:
        _print(f"the index is of model {report.model} already; nothing was read again")
        return
    left = f", {report.left_out:,} instances left out" if report.left_out else ""
    _print(
        f"model {report.model} is in force ({report.index}): {report.encoded:,} images encoded"
        f"{left}; {report.seconds:.1f} s"
    )
    _print(f"{report.previous} is kept: --back returns to it, --drop-previous removes it")
    if settings.model is not None:
        _print(
            "The settings name a model (PRECEDENT_MODEL, or `model` in precedent.toml); take that "
            "out, for the data folder names it from now on."
        )


def _print(words: str) -> None:
    Console().print(words, highlight=False, markup=False, soft_wrap=True)

"""``precedent info``: what is in the index, and what was refused."""

from typing import Annotated, Any

import typer
from rich.console import Console

from api.cli.options import DataDirOption, JsonOption, ModelOption, write_json
from api.cli.terminal import printable
from engine import __version__
from engine.settings import load_settings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.files.locators import shown

__all__ = ["info"]


def info(
    refusals: Annotated[
        bool, typer.Option("--refusals", help="Name the refused files, and why.")
    ] = False,
    limit: Annotated[int, typer.Option(help="Refused files to name.")] = 1000,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """What is in the index, and what was refused."""

    with Archive(load_settings(data_dir=data_dir, model=model)) as archive:
        manifest = archive.manifest
        document: dict[str, Any] = {
            "version": __version__,
            "data_dir": str(archive.data_dir.root),
            "model": manifest.fingerprint,
            "tower": manifest.network.tower.name,
            "bits": manifest.bits,
            "dim": manifest.dim,
            "precision": archive.encoder.precision,
            "index_precision": archive.store.collection.precision,
            "points": archive.store.count(Filter()),
            "instances": archive.ledger.counts(),
            "facets": archive.engine.facets(Filter()),
        }
        refused = archive.ledger.refusals(limit) if refusals else []
    if refusals:
        document["refusals"] = [
            {"path": shown(one.locator), "reason": one.reason, "detail": one.detail}
            for one in refused
        ]
    if as_json:
        write_json(document)
        return
    lines = document.pop("refusals", [])
    facets = document.pop("facets")
    console = Console()
    for name, value in document.items():
        console.print(printable(f"{name:>10}  {_plain(value)}"), soft_wrap=True)
    for field, counts in facets.items():
        console.print(printable(f"{field:>10}  {_plain(counts)}"), soft_wrap=True)
    for line in lines:
        text = f"{line['reason']}  {line['path']}: {line['detail']}"
        console.print(printable(text), soft_wrap=True)


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count:,}" for name, count in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)

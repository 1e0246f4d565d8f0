"""``precedent info``: prints what is in the index and the ledger, and which files were refused."""

from typing import Annotated, Any

import typer
from rich.console import Console

from api.cli.options import DataDirOption, JsonOption, ModelOption, write_json
from api.cli.terminal import printable
from engine import __version__
from engine.settings import load_settings
from indexer.files.locators import shown
from indexer.overview import overview

__all__ = ["info"]


def info(
    refusals: Annotated[
        bool, typer.Option("--refusals", help="Name refused files, and missing frames.")
    ] = False,
    limit: Annotated[int, typer.Option(help="Files to name, of either.")] = 1000,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """What is in the index, and what was refused."""
    found = overview(load_settings(data_dir=data_dir, model=model), limit if refusals else 0)
    document: dict[str, Any] = {
        "version": __version__,
        "data_dir": str(found.data_dir),
        "model": found.model.fingerprint,
        "tower": found.model.network.tower.name,
        "bits": found.model.bits,
        "dim": found.model.dim,
        "precision": found.precision,
        "index_precision": found.index_precision,
        "rendering": found.rendering,
        "rendered_otherwise": found.rendered_otherwise,
        "points": found.points,
        "instances": found.instances,
        "partial": found.partial,
        "facets": found.facets,
    }
    if refusals:
        document["refusals"] = [
            {"path": shown(one.locator), "reason": one.reason, "detail": one.detail}
            for one in found.refusals
        ]
        document["missing_frames"] = [
            {"path": shown(locator), "frames": frames} for locator, frames in found.missing_frames
        ]
    if as_json:
        write_json(document)
        return
    lines = document.pop("refusals", [])
    incomplete = document.pop("missing_frames", [])
    facets = document.pop("facets")
    console = Console()
    for name, value in document.items():
        console.print(printable(f"{name:>10}  {_plain(value)}"), soft_wrap=True)
    for field, counts in facets.items():
        console.print(printable(f"{field:>10}  {_plain(counts)}"), soft_wrap=True)
    if found.rendered_otherwise:
        console.print(
            f"{found.rendered_otherwise:,} instances were rendered by another version or with "
            "other settings; `precedent index PATH… --again` renews their pictures",
            soft_wrap=True,
            highlight=False,
        )
    for line in lines:
        text = f"{line['reason']}  {line['path']}: {line['detail']}"
        console.print(printable(text), soft_wrap=True)
    for line in incomplete:
        text = f"partial  {line['path']}: {line['frames']}"
        console.print(printable(text), soft_wrap=True)


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count:,}" for name, count in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)

"""``precedent info``: prints what is in the index and the ledger, and which files were refused."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.options import (
    DataDirOption,
    JsonOption,
    ModelOption,
    TenantOption,
    tenant_of,
    write_json,
)
from api.cli.refusals import ReasonOption, by_reason, parse_reason
from engine import __version__
from engine.settings import StoreSettings, load_settings
from engine.store.cells import Cells
from indexer.files.locators import shown
from indexer.overview import overview

if TYPE_CHECKING:
    from engine.store.checks import Check

__all__ = ["info"]


def info(
    refusals: Annotated[
        bool, typer.Option("--refusals", help="Name refused files, and missing frames.")
    ] = False,
    reason: ReasonOption = None,
    limit: Annotated[int, typer.Option(help="Files to name, of either.")] = 1000,
    tenant: TenantOption = None,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """What is in the index, and what was refused."""
    settings = load_settings(data_dir=data_dir, model=model)
    only = parse_reason(reason)
    refusals = refusals or only is not None
    found = overview(settings, limit if refusals else 0, tenant_of(tenant, settings), only)
    checks = _checks(settings.store)
    document: dict[str, Any] = {
        "version": __version__,
        "data_dir": str(found.data_dir),
        "tenant": found.tenant,
        "tenants": found.tenants,
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
        "refused_by_reason": by_reason(found.refused),
        "partial": found.partial,
        "cells": _cells(found.cells),
        "facets": found.facets,
        "facets_at_least": list(found.facets.at_least),
        "not_asked": found.not_asked,
    }
    if checks:
        document["server"] = [asdict(one) for one in checks]
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
    document.pop("server", None)
    reasons = document.pop("refused_by_reason")
    lines = document.pop("refusals", [])
    incomplete = document.pop("missing_frames", [])
    facets, at_least = document.pop("facets"), document.pop("facets_at_least")
    document["tenants"] = ", ".join(found.tenants)
    not_asked = document.pop("not_asked")
    if document["cells"] is None:
        del document["cells"]
    if not_asked is not None:
        del document["points"]
    for name, value in document.items():
        _write(f"{name:>10}  {_plain(value)}")
    for field, counts in facets.items():
        bound = " (at least so many; values may be missing)" if field in at_least else ""
        _write(f"{field:>10}  {_plain(counts)}{bound}")
    for one in checks:
        _write(
            f"{'server':>10}  {one.state}: {'; '.join(filter(None, (one.sentence, one.way_out)))}"
        )
    if found.rendered_otherwise:
        _write(
            f"{found.rendered_otherwise:,} instances were rendered by another version or with "
            "other settings; `precedent index PATH… --again` renews their pictures"
        )
    if not_asked is not None:
        _write(f"points, cells and values are not told: {not_asked}")
    for one in reasons if refusals and only is None else ():
        _write(f"refused: {one['reason']} {one['count']:,}: {one['what_to_do']}")
    for line in lines:
        _write(f"{line['reason']}  {line['path']}: {line['detail']}")
    for line in incomplete:
        _write(f"partial  {line['path']}: {line['frames']}")


def _checks(settings: StoreSettings) -> "list[Check]":
    """What is good and what is not about the Qdrant server; [] = the index is embedded."""
    if settings.url is None:
        return []
    # Imported here, as it loads a large library.
    from engine.store.checks import check_server

    return check_server(settings)


def _cells(cells: Cells | None) -> dict[str, int | float] | None:
    """The cells of the coarse filter, and what the index measured of itself: how many of them a
    search looks into, and which share of the ten most similar images is in those, and among the
    nearest codes."""
    if cells is None:
        return None
    return {
        "count": len(cells),
        "looked_into": cells.probes,
        "recall": round(cells.recall, 4),
        "code_recall": round(cells.code_recall, 4),
    }


def _write(line: str) -> None:
    """Writes a line, without rich, which takes as long to load as all else that this prints."""
    typer.echo(line.encode("utf-8", "replace").decode())


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)

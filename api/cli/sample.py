"""``precedent sample``: writes a synthetic DICOM archive to try things on."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from api.cli.options import JsonOption, check_writable, write_json

__all__ = ["sample"]


def sample(
    directory: Annotated[Path, typer.Argument(help="A folder to make.")],
    seed: Annotated[int, typer.Option(help="Another seed, other patients.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a synthetic DICOM archive to try things on."""
    from indexer.sample import write_sample

    check_writable(directory, "DIRECTORY")

    report = write_sample(directory, seed=seed)
    if as_json:
        write_json(asdict(report) | {"directory": str(report.directory)})
    else:
        Console().print(
            f"{report.written:,} of {report.instances + report.pydicom_files:,} files "
            f"written to {directory}",
            highlight=False,
        )

"""Options that several commands share, and functions that write JSON and refusals."""

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.errors import ImageRefused, QueryError
from engine.tenants import DEFAULT_TENANT, checked_tenant

if TYPE_CHECKING:
    from engine.settings import Settings
    from indexer.sources.opening import SourceSpec

__all__ = [
    "AgainOption",
    "AtMostOption",
    "DataDirOption",
    "JsonOption",
    "LabelsOption",
    "ModalityOption",
    "ModelOption",
    "RetryRefusedOption",
    "SinceOption",
    "SourceOption",
    "StudyOption",
    "TenantOption",
    "UntilOption",
    "VanishedOption",
    "WhereOption",
    "check_writable",
    "parse_share",
    "parse_vanished",
    "refuse",
    "tenant_of",
    "write_json",
]

DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Index, ledger, thumbnails. [PRECEDENT_DATA_DIR]"),
]
ModelOption = Annotated[
    Path | None, typer.Option("--model", help="Folder of a checkpoint. [PRECEDENT_MODEL]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(help="Facet filter, as in modality=CT or study_year=2015..2020."),
]
SourceOption = Annotated[
    str | None, typer.Option("--source", help="A source that the settings name.")
]
LabelsOption = Annotated[
    str | None, typer.Option("--labels", help="'folder': the name of a file's folder is its label.")
]
SinceOption = Annotated[
    str | None, typer.Option("--since", help="Studies from this date on. DICOMweb only.")
]
UntilOption = Annotated[
    str | None, typer.Option("--until", help="Studies up to this date. DICOMweb only.")
]
ModalityOption = Annotated[
    str | None, typer.Option("--modality", help="Series of this modality. DICOMweb only.")
]
StudyOption = Annotated[
    str | None, typer.Option("--study", help="This Study Instance UID. DICOMweb only.")
]
TenantOption = Annotated[
    str | None,
    typer.Option(
        "--tenant", help="Whose images; 'default', or what the settings of the source say."
    ),
]
RetryRefusedOption = Annotated[
    bool, typer.Option("--retry-refused", help="Read again what was refused before.")
]
AgainOption = Annotated[
    bool, typer.Option("--again", help="Read everything again, also what did not change.")
]
VanishedOption = Annotated[
    bool,
    typer.Option("--delete-vanished", help="Remove from the index what the source no longer has."),
]


AtMostOption = Annotated[
    str,
    typer.Option(
        "--at-most",
        help="Remove nothing if more than this share of the source has vanished.",
        metavar="SHARE",
    ),
]


def check_writable(path: Path, option: str, *, file: bool = False) -> None:
    """Checks that a file or folder can be written, before the work that leads to it. Makes nothing.

    Args:
        option: the option or argument that named it.
        file: it is to be a file, in a folder that is there. False = a folder, made where it is not.

    Raises:
        QueryError: it cannot be.
    """
    place = path.parent if file else path
    while not file and not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if file and path.is_dir():
        why = "it is a folder"
    elif not place.is_dir():
        why = f"{place} is no folder"
    elif not os.access(place, os.W_OK):
        why = f"{place} may not be written"
    else:
        return
    raise QueryError(f"{option} is {str(path)!r}, which cannot be written: {why}; name another")


def tenant_of(given: str | None, settings: "Settings", source: str | None = None) -> str:
    """The tenant that --tenant names; else that of the source in the settings; else the default
    one.

    Args:
        source: name of a source, which the settings may have; None = none.

    Raises:
        QueryError: none may be named so, or the settings give the source to another one.
    """
    named = None if source is None else settings.sources.get(source)
    of_source = None if named is None else named.tenant
    if given is None:
        return of_source or DEFAULT_TENANT
    if of_source not in (None, given):
        raise QueryError(
            f"--tenant is {given!r}, but the settings give source {source!r} to {of_source!r}; "
            "leave --tenant out, or change the settings"
        )
    return checked_tenant(given)


def parse_vanished(at_most: str, spec: "SourceSpec", *, wanted: bool) -> float:
    """The share that --at-most names, as in "20%", in [0, 1].

    wanted: whether what vanished is to be removed at all.

    Raises:
        QueryError: it is no share, or only a part of the source is asked for.
    """
    if wanted and not spec.is_whole:
        raise QueryError(
            "--delete-vanished would remove all that --since, --until, --modality or --study leave "
            "out; leave these out, or --delete-vanished"
        )
    return parse_share(at_most)


def parse_share(at_most: str) -> float:
    """The share that --at-most names, as in "20%", in [0, 1]. Raises QueryError: it is none."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d+)?) ?%?", at_most.strip())
    if match is None or float(match[1]) > 100:
        raise QueryError(f"--at-most is {at_most!r}; write a share as in 20%")
    return float(match[1]) / 100


def write_json(document: dict[str, Any]) -> None:
    """Writes the object to standard output, as one line."""
    sys.stdout.write(json.dumps(document, ensure_ascii=True) + "\n")
    sys.stdout.flush()


def refuse(path: Path, refused: ImageRefused, *, as_json: bool) -> None:
    """Writes why a query image was refused: as JSON to standard output, else to standard error."""
    if as_json:
        write_json({"error": {"code": refused.code, "detail": refused.detail}, "query": str(path)})
    else:
        print(f"precedent: {path}: {refused}", file=sys.stderr)  # noqa: T201

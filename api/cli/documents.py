"""``precedent report``, ``precedent key-objects``: DICOM documents of an answer, as files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from api.cli.accesses import note, record_before
from api.cli.options import (
    DataDirOption,
    JsonOption,
    ModelOption,
    TenantOption,
    WhereOption,
    check_writable,
    tenant_of,
    write_json,
)
from engine.errors import QueryError
from engine.settings import Settings, load_settings

if TYPE_CHECKING:
    from api.security.seen import Seen
    from indexer.archive import TenantArchive
    from indexer.documents.headers import Headers
    from indexer.documents.making import Document
    from indexer.documents.plans import Plan

__all__ = [
    "ExactOption",
    "ExcludeOption",
    "FormatOption",
    "GroupOption",
    "ImageOption",
    "Making",
    "ReportOptions",
    "TeachingOption",
    "key_objects",
    "making",
    "report",
    "seen_of",
]

_FORMATS = ("sr", "pdf")

FormatOption = Annotated[
    str, typer.Option("--format", help="'sr', a structured report, or 'pdf', an encapsulated PDF.")
]
ImageOption = Annotated[
    str | None,
    typer.Option("--image", help="Id of an image of the study: the query is it alone."),
]
GroupOption = Annotated[
    str, typer.Option(help="One hit of each 'study' or 'patient'; 'none': all images.")
]
ExcludeOption = Annotated[
    str, typer.Option(help="Leave out the study's own 'study' or 'patient', or 'none'.")
]
ExactOption = Annotated[bool, typer.Option("--exact", help="Compare with everything.")]
TeachingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--teaching",
        help="Id of an image for a teaching collection; repeatable.",
        metavar="ID",
    ),
]


def report(
    study: Annotated[str, typer.Argument(help="Study Instance UID.", metavar="STUDY")],
    form: FormatOption = "sr",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file; left out: UID.dcm, here.")
    ] = None,
    image: ImageOption = None,
    k: Annotated[int | None, typer.Option("-k", help="Cases in it, at most.")] = None,
    where: WhereOption = None,
    exact: ExactOption = False,
    group_by: GroupOption = "study",
    exclude_own: ExcludeOption = "patient",
    tenant: TenantOption = None,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the report of a study as a DICOM file: the cases most like it.

    The file names the study's patient, as the original does at this moment; only its owner may read
    it. Hits of other patients stand in it as text. `precedent send` sends it to a PACS.
    """
    asked = ReportOptions(study, form, image, k, where or [], exact, group_by, exclude_own)
    asked.check()
    place = Path() if out is None else out
    check_writable(place, "--out", file=out is not None)
    settings = load_settings(data_dir=data_dir, model=model)
    with making(settings, tenant_of(tenant, settings)) as made:
        plans = [made.report(asked)]
        documents = made.documents(plans)
    _write(plans, documents, place, as_json=as_json)


def key_objects(
    study: Annotated[
        str | None, typer.Argument(help="Study Instance UID.", metavar="[STUDY]")
    ] = None,
    teaching: TeachingOption = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the files, one a study.")
    ] = Path(),
    k: Annotated[int, typer.Option("-k", help="Images, at most.")] = 20,
    tenant: TenantOption = None,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write key objects of similar images as DICOM files.

    Of STUDY: of the same patient's earlier images that are similar to it, a file for each study
    that they are of. With --teaching: for a teaching collection, a file for each of these images.
    """
    if (study is None) == (not teaching):
        raise QueryError("name a STUDY, or images with --teaching ID; one of both")
    check_writable(out, "--out")
    settings = load_settings(data_dir=data_dir, model=model)
    with making(settings, tenant_of(tenant, settings)) as made:
        plans = made.earlier(study, k) if study is not None else made.teaching(teaching or [])
        documents = made.documents(plans)
    out.mkdir(parents=True, exist_ok=True)
    _write(plans, documents, out, as_json=as_json)


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What a report is to be about, as options say it."""

    study: str
    form: str
    image: str | None
    k: int | None
    where: list[str]
    exact: bool
    group_by: str
    exclude_own: str

    def check(self) -> None:
        """Raises QueryError: there is no such format."""
        if self.form not in _FORMATS:
            raise QueryError(f"--format is {self.form!r}; use one of {', '.join(_FORMATS)}")


class Making:
    """Makes documents of a tenant's archive, as of this moment."""

    def __init__(self, archive: "TenantArchive", headers: "Headers") -> None:
        self.archive, self.headers = archive, headers

    def report(self, asked: ReportOptions) -> "Plan":
        """The plan of a report. Raises as ``plan_report`` does."""
        from engine.search.query import parse_group, parse_id, parse_where
        from indexer.documents.planning import ReportAsked, plan_report

        return plan_report(
            ReportAsked(
                asked.study,
                "pdf" if asked.form == "pdf" else "sr",
                None if asked.image is None else parse_id(asked.image),
                self.archive.settings.search.k if asked.k is None else asked.k,
                parse_where(asked.where),
                asked.exact,
                parse_group(asked.exclude_own),
                parse_group(asked.group_by),
            ),
            self.archive,
            datetime.now(),
        )

    def earlier(self, study: str, k: int) -> list["Plan"]:
        """Plans of key objects. Raises as ``plan_earlier`` does."""
        from indexer.documents.planning import plan_earlier

        return plan_earlier(study, k, self.archive, self.headers, datetime.now())

    def teaching(self, images: Sequence[str]) -> list["Plan"]:
        """Plans of key objects. Raises as ``plan_teaching`` does."""
        from engine.search.query import parse_id
        from indexer.documents.planning import plan_teaching

        return plan_teaching(list(map(parse_id, images)), self.archive, datetime.now())

    def documents(self, plans: Sequence["Plan"]) -> list["Document"]:
        """The documents of plans, in order. Raises as ``make_document`` does."""
        from indexer.documents.making import make_document

        return [make_document(one, self.archive, self.headers) for one in plans]


@contextmanager
def making(settings: Settings, tenant: str) -> Iterator[Making]:
    """Opens the archive for documents. Raises as ``Archive`` does."""
    from indexer.archive import Archive, TenantArchive
    from indexer.documents.headers import Headers

    with Archive(settings, tenant=tenant) as archive, Headers(settings) as headers:
        yield Making(TenantArchive(archive, tenant), headers)


def seen_of(plans: Sequence["Plan"], documents: Sequence["Document"]) -> "Seen":
    """What the documents show, for the audit log."""
    from api.security.seen import Seen

    images = [image for one in plans for image in (one.image, *(hit.image for hit in one.hits))]
    studies = dict.fromkeys(one.study for one in documents)
    return Seen(tuple(studies), tuple(dict.fromkeys(images)), len(documents))


def _write(
    plans: Sequence["Plan"], documents: Sequence["Document"], place: Path, *, as_json: bool
) -> None:
    """Writes documents to this file, or into this folder, and tells where they are."""
    from engine.files import write_atomically

    seen = seen_of(plans, documents)
    record_before(seen)
    told = []
    for plan, one in zip(plans, documents, strict=True):
        path = place / f"{one.sop}.dcm" if place.is_dir() else place
        write_atomically(path, one.file, private=True)
        told.append({"kind": plan.kind, "study": one.study, "sop": one.sop, "path": str(path)})
    note(seen)
    if as_json:
        write_json({"documents": told})
        return
    for line in told:
        Console().print(
            f"{line['path']}: {line['kind']}", highlight=False, markup=False, soft_wrap=True
        )

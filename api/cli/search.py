"""``precedent search``: finds the indexed images that look like given files."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from api.cli.accesses import note
from api.cli.options import (
    DataDirOption,
    JsonOption,
    ModelOption,
    TenantOption,
    WhereOption,
    refuse,
    tenant_of,
    write_json,
)
from api.cli.terminal import answer_table
from api.schemas import local_document
from engine.errors import ImageRefused
from engine.records import Answer
from engine.search.query import Cursor, Query, parse_group, parse_where
from engine.settings import load_settings

__all__ = ["search"]


def search(
    images: Annotated[
        list[Path] | None, typer.Argument(help="DICOM, PNG, JPEG …", metavar="IMAGE...")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Search by words in place of images, with a model that was trained with --words."
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Hits wanted.")] = 10,
    where: WhereOption = None,
    tenant: TenantOption = None,
    order: Annotated[str, typer.Option(help="'content' or 'hamming'.")] = "content",
    exact: Annotated[bool, typer.Option("--exact", help="Compare with everything.")] = False,
    radius: Annotated[
        int | None,
        typer.Option(help="Compare with every image whose code is within so many bits."),
    ] = None,
    group_by: Annotated[
        str | None, typer.Option(help="One hit of each 'study' or 'patient'.")
    ] = None,
    exclude_own: Annotated[
        str | None,
        typer.Option(help="Leave out the own 'study' or 'patient' that the file's header names."),
    ] = None,
    page: Annotated[
        str | None, typer.Option(help="Go on: `next_page` of the same question's answer.")
    ] = None,
    no_facets: Annotated[bool, typer.Option("--no-facets", help="Count no values.")] = False,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> int:
    """Find the images that look like these, or that fit a text."""
    if (text is None) == (not images):
        raise typer.BadParameter("give images, or a text with --text; one of the two")
    from api.security.seen import Seen
    from indexer.archive import Archive

    query = Query(
        k=k,
        where=parse_where(where or []),
        order=order,
        exact=exact,
        radius=radius,
        group_by=parse_group(group_by),
        exclude=parse_group(exclude_own),
        page=None if page is None else Cursor.parse(page),
        facets=not no_facets,
    )
    settings = load_settings(data_dir=data_dir, model=model)
    code = 0
    with ExitStack() as opened:
        archive = opened.enter_context(Archive(settings, tenant=tenant_of(tenant, settings)))

        def tell(name: str, answer: Answer) -> None:
            note(Seen.of(answer.hits, ood=answer.ood))
            document = local_document(answer, archive.paths([hit.id for hit in answer.hits]))
            if as_json:
                write_json({**document, "query": name})
            else:
                Console().print(answer_table(name, document, query.offset))

        if text is not None:
            tell(text, archive.engine.search_text(text, query))
            return code
        files = images or []
        reader = opened.enter_context(archive.query_reader())
        for path, image in zip(files, reader.read(files), strict=True):
            if isinstance(image, ImageRefused):
                code = 1
                refuse(path, image, as_json=as_json)
                continue
            (answer,) = archive.engine.search([image.canvas], query, [image.record], [image.colour])
            tell(str(path), answer)
    return code

"""``precedent duplicates``: lists groups of images that are (almost) the same picture."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from api.cli.accesses import note
from api.cli.options import (
    DataDirOption,
    JsonOption,
    ModelOption,
    TenantOption,
    WhereOption,
    tenant_of,
    write_json,
)
from engine.errors import QueryError
from engine.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path

    from api.security.seen import Seen
    from engine.search.duplicates import DuplicateGroup

__all__ = ["duplicates"]

_OF_ROW = 100
"""Groups that are shown with one row of the audit log."""


def duplicates(
    similarity: Annotated[
        float | None, typer.Option(help="Least similarity of two duplicates; 0.999 if left out.")
    ] = None,
    max_bits: Annotated[
        int | None, typer.Option(help="Most bits in which their codes differ; 3 if left out.")
    ] = None,
    across_studies: Annotated[
        bool, typer.Option("--across-studies", help="Only groups of more than one study.")
    ] = False,
    where: WhereOption = None,
    tenant: TenantOption = None,
    limit: Annotated[
        int | None, typer.Option(help="Groups to list, the largest first; all if left out.")
    ] = None,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """List images that are the same picture, or nearly: copies, re-saved and resized ones.

    With --json, prints one group per line. At a slightly lower --similarity, neighbouring slices of
    a stack count as duplicates too.
    """
    from api.cli.terminal import duplicates_table
    from engine.search import duplicates as search
    from engine.search.query import parse_where
    from engine.search.spelling import as_spelled
    from indexer.archive import Archive

    if limit is not None and limit < 1:
        raise QueryError(f"--limit is {limit}; use 1 or more")
    filters = parse_where(where or [])
    given = {"similarity": similarity, "max_bits": max_bits}
    options: dict[str, Any] = {name: one for name, one in given.items() if one is not None}
    shown: list[dict[str, Any]] = []
    settings = load_settings(data_dir=data_dir, model=model)
    with (
        Archive(settings, tenant=tenant_of(tenant, settings)) as archive,
        _progress(shown=not as_json) as progress,
    ):
        filters, remarks = as_spelled(archive.store, filters)
        for remark in remarks:
            Console(stderr=True).print(remark, highlight=False, markup=False)
        groups = search.duplicates(archive.store, where=filters, progress=progress, **options)
        wanted = (group for group in groups if group.studies > 1 or not across_studies)
        listed = islice(wanted, limit)
        # A row names several groups: each row is a transaction.
        while groups_of_row := list(islice(listed, _OF_ROW)):
            documents = []
            for group in groups_of_row:
                note(_seen(group))
                members = [one.id for one in group.members]
                documents.append(_document(group, archive.paths(members)))
            if as_json:
                for document in documents:
                    write_json(document)
            else:
                shown += documents
        more = next(wanted, None) is not None
    if not as_json:
        Console().print(duplicates_table(shown, more=more))


def _seen(group: "DuplicateGroup") -> "Seen":
    from api.security.seen import Seen

    studies = dict.fromkeys(one.record.study for one in group.members)
    return Seen(
        tuple(one for one in studies if one is not None),
        tuple(one.id for one in group.members),
        len(group.members),
    )


def _document(group: "DuplicateGroup", paths: "dict[str, Path]") -> dict[str, Any]:
    return {
        "studies": group.studies,
        "images": [
            {
                "id": one.id,
                "similarity": round(one.similarity, 6),
                "identical": one.identical,
                "path": str(paths[one.id]) if one.id in paths else None,
                "study": one.record.study,
                "series": one.record.series,
                "sop": one.record.sop,
                "frame": one.record.frame,
            }
            for one in group.members
        ],
    }


@contextmanager
def _progress(*, shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    errors = Console(stderr=True)
    with Progress(
        console=errors, transient=True, disable=not (shown and errors.is_terminal)
    ) as bar:
        task = bar.add_task("read", total=None)

        def show(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield show

"""``precedent recommend``: finds the cases most similar to an image, a series, a study or liked
images."""

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
from engine.search.query import parse_group
from engine.settings import load_settings

__all__ = ["recommend"]


def recommend(
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="DICOM, PNG, JPEG …; several, or a folder of them, are the slices of a series.",
            metavar="[IMAGE]...",
        ),
    ] = None,
    like: Annotated[
        list[str] | None, typer.Option(help="Id of an indexed image to like.", metavar="ID")
    ] = None,
    dislike: Annotated[
        list[str] | None,
        typer.Option(help="Id of one to keep away from: what is nearer to it is left out."),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="Study Instance UID; its images are liked.")
    ] = None,
    series: Annotated[
        str | None, typer.Option(help="Series Instance UID; its images are liked.")
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="Compare each 'image' by itself, or whole 'series' or 'study' by the mean of each "
            "example's best match. If left out: series where a series is given, else images."
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Hits wanted.")] = 10,
    where: WhereOption = None,
    tenant: TenantOption = None,
    group_by: Annotated[
        str, typer.Option(help="One hit of each 'study' or 'patient'; 'none': all.")
    ] = "study",
    exclude_own: Annotated[
        str, typer.Option(help="Leave out the examples' own 'study' or 'patient', or 'none'.")
    ] = "patient",
    diversity: Annotated[
        float, typer.Option(help="0: the most similar ones; up to 1: ones that differ.")
    ] = 0.0,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with everything.")] = False,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> int:
    """Find the cases most like examples: an image, a series, a study, or indexed images by id.

    Give one or several of them, and with --dislike images to keep away from. Unless asked for
    otherwise, images of the examples' own patients are left out, and each other study is shown by
    its best image. Of a series with more than 32 images, 32 that are evenly spaced are examples.
    """
    from api.cli.slices import Slices, read_slices
    from api.cli.terminal import recommendation_table
    from api.schemas import local_document
    from api.security.seen import Seen
    from engine.errors import QueryError
    from engine.search.examples import taken_of
    from engine.search.query import parse_where
    from engine.search.recommend import Examples, Wanted
    from indexer.archive import Archive

    given = images or []
    whole = series is not None or len(given) > 1 or any(path.is_dir() for path in given)
    wanted = Wanted(
        k=k,
        where=parse_where(where or []),
        exact=exact,
        group_by=parse_group(group_by),
        exclude=parse_group(exclude_own),
        diversity=diversity,
        rule=rule or ("series" if whole else "image"),
    )
    if not given and not like and study is None and series is None:
        raise QueryError(
            "say what the cases should be like: an IMAGE or a folder, --like ID or --study UID, or "
            "--series UID"
        )
    settings = load_settings(data_dir=data_dir, model=model)
    with Archive(settings, tenant=tenant_of(tenant, settings)) as archive:
        sent = Slices([], 0)
        if given:
            with archive.query_reader() as reader:
                sent = read_slices(reader, given)
            if sent.refused is not None:
                refuse(*sent.refused, as_json=as_json)
                return 1
        records = [one.record for one in sent.images]
        taken = taken_of(records, wanted.rule)
        canvases = [sent.images[at].canvas for at in taken]
        colour = [sent.images[at].colour for at in taken]
        examples = Examples(
            liked=tuple(like or ()),
            disliked=tuple(dislike or ()),
            study=study,
            series=series,
            seen=archive.engine.observed(canvases, colour) if canvases else None,
            seen_of=sent.in_all,
            records=tuple(records[at] for at in taken),
            seen_ids=tuple(one.id_in(archive.tenant) for one in sent.images),
        )
        answer = archive.engine.recommend(examples, wanted)
        studies = [] if study is None else [study]
        because = (one.because for one in answer.hits if one.because is not None)
        asked = (*examples.liked, *examples.disliked, *because)
        hits = [one.hit for one in answer.hits]
        note(Seen.of(hits, asked=asked, studies=studies, ood=answer.ood))
        paths = archive.paths([one.hit.id for one in answer.hits])
    document = local_document(answer, paths)
    named = [str(path) for path in given]
    if as_json:
        query = None if not named else named[0] if len(named) == 1 else named
        write_json({**document, "query": query})
    else:
        shown = named if len(named) <= 2 else [f"{len(named)} files, {named[0]} …"]
        shown += [f"study {study}"] if study is not None else []
        shown += [f"series {series}"] if series is not None else []
        Console().print(recommendation_table(", ".join([*shown, *(like or ())]), document))
    return 0

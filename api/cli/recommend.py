"""``precedent recommend``: finds the cases most similar to an image, a study or liked images."""

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
from engine.errors import ImageRefused
from engine.search.query import parse_group
from engine.settings import load_settings

__all__ = ["recommend"]


def recommend(
    image: Annotated[Path | None, typer.Argument(help="DICOM, PNG, JPEG …")] = None,
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
    k: Annotated[int, typer.Option("-k", help="Hits wanted.")] = 10,
    where: WhereOption = None,
    tenant: TenantOption = None,
    group_by: Annotated[
        str, typer.Option(help="One hit of each 'study' or 'patient'; 'none': all images.")
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
    """Find the cases most like examples: an image, a study, or indexed images by id.

    Give one or several of them, and with --dislike images to keep away from. Unless asked for
    otherwise, images of the examples' own patients are left out, and each other study is shown by
    its best image.
    """
    from api.cli.terminal import recommendation_table
    from api.schemas import local_document
    from api.security.seen import Seen
    from engine.errors import QueryError
    from engine.search.query import parse_where
    from engine.search.recommend import Examples, Wanted
    from indexer.archive import Archive, QueryImage

    wanted = Wanted(
        k=k,
        where=parse_where(where or []),
        exact=exact,
        group_by=parse_group(group_by),
        exclude=parse_group(exclude_own),
        diversity=diversity,
    )
    if image is None and not like and study is None:
        raise QueryError("say what the cases should be like: an IMAGE, --like ID or --study UID")
    settings = load_settings(data_dir=data_dir, model=model)
    with Archive(settings, tenant=tenant_of(tenant, settings)) as archive:
        read: QueryImage | None = None
        if image is not None:
            with archive.query_reader() as reader:
                (result,) = reader.read([image])
            if isinstance(result, ImageRefused):
                refuse(image, result, as_json=as_json)
                return 1
            read = result
        examples = Examples(
            liked=tuple(like or ()),
            disliked=tuple(dislike or ()),
            study=study,
            seen=None if read is None else archive.engine.observed([read.canvas]),
            record=None if read is None else read.record,
            seen_id=None if read is None else read.id_in(archive.tenant),
        )
        answer = archive.engine.recommend(examples, wanted)
        studies = [] if study is None else [study]
        because = (one.because for one in answer.hits if one.because is not None)
        asked = (*examples.liked, *examples.disliked, *because)
        hits = [one.hit for one in answer.hits]
        note(Seen.of(hits, asked=asked, studies=studies, ood=answer.ood))
        paths = archive.paths([one.hit.id for one in answer.hits])
    document = local_document(answer, paths)
    if as_json:
        named_image = None if image is None else str(image)
        write_json({**document, "query": named_image})
    else:
        named = [str(image)] if image is not None else []
        named += [f"study {study}"] if study is not None else []
        Console().print(recommendation_table(", ".join([*named, *(like or ())]), document))
    return 0

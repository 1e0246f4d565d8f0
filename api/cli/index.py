"""``precedent index``: reads images, encodes them and adds them to the index."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from api.cli.accesses import note
from api.cli.options import (
    AgainOption,
    AtMostOption,
    DataDirOption,
    JsonOption,
    LabelsOption,
    ModalityOption,
    ModelOption,
    RetryRefusedOption,
    SinceOption,
    SourceOption,
    StudyOption,
    TenantOption,
    UntilOption,
    VanishedOption,
    parse_vanished,
    tenant_of,
    write_json,
)
from api.cli.refusals import by_reason
from api.cli.terminal import indexing_progress, printable, report_table
from engine.settings import load_settings
from indexer.datadir.disk_space import check_room
from indexer.sources.opening import SourceSpec

__all__ = ["index"]


def index(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders, files, zip and tar archives, DICOMDIRs.", metavar="[PATH...]"
        ),
    ] = None,
    source: SourceOption = None,
    tenant: TenantOption = None,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    labels: LabelsOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    modality: ModalityOption = None,
    study: StudyOption = None,
    retry_refused: RetryRefusedOption = False,
    again: AgainOption = False,
    delete_vanished: VanishedOption = False,
    at_most: AtMostOption = "20%",
    as_json: JsonOption = False,
) -> None:
    """Bring images into the index. Stop it at any time; the same command goes on."""
    from api.security.seen import Seen
    from indexer.archive import Archive
    from indexer.pipeline.removal import Vanished

    if not paths and source is None:
        raise typer.BadParameter(
            "name folders and files, or a source with --source", param_hint="PATH"
        )
    settings = load_settings(data_dir=data_dir, model=model)
    spec = SourceSpec.asked(paths, source, labels, since, until, modality, study)
    whose = tenant_of(tenant, settings, source)
    share = parse_vanished(at_most, spec, wanted=delete_vanished)
    opened = spec.open(settings)
    errors = Console(stderr=True)
    check_room(settings.data_dir, settings.indexing.min_free_bytes)
    with Archive(settings, tenant=whose, create=True) as archive:
        shown = errors.is_terminal and not as_json
        with indexing_progress(errors, shown=shown) as progress:
            report = archive.index(
                opened,
                retry_refused=retry_refused,
                again=again,
                vanished_from=spec.scope(settings) if delete_vanished else None,
                at_most=share,
                progress=progress,
            )
    note(Seen(results=report.points))
    if as_json:
        write_json({**asdict(report), "refused_by_reason": by_reason(report.refused)})
    else:
        Console().print(report_table(report))
        if report.retried:
            Console().print(
                f"{report.retried:,} of them were refused by an earlier version and tried again, "
                "because this one reads more.",
                soft_wrap=True,
                highlight=False,
            )
        if report.removed:
            gone = Vanished(report.removed, report.removed_first)
            Console().print(printable(f"{gone}."), soft_wrap=True)
        if report.deleted:
            Console().print(
                f"{report.deleted:,} files were left out, because `precedent delete` removed them; "
                "`--again` takes them in.",
                soft_wrap=True,
                highlight=False,
            )
        if report.partial:
            Console().print(
                f"{report.partial:,} of those in the index are partial: some of their frames are "
                "missing or broken.",
                soft_wrap=True,
                highlight=False,
            )
        if report.refused or report.partial:
            named = ["the refused files"] if report.refused else []
            named += ["missing frames"] if report.partial else []
            only = ", `--reason` those of one reason" if report.refused else ""
            Console().print(
                f"`precedent info --refusals` names {' and '.join(named)}{only}.",
                highlight=False,
                soft_wrap=True,
            )

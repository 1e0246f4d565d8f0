"""Terminal output of several commands: tables of hits and reports, and progress bars."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress as Bar,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)
from rich.table import Table
from rich.text import Text

from api.cli.refusals import by_reason

if TYPE_CHECKING:
    from indexer.pipeline.run import IndexingReport, Progress

__all__ = [
    "answer_table",
    "duplicates_table",
    "indexing_progress",
    "printable",
    "progress_lines",
    "recommendation_table",
    "report_table",
    "tracked",
]

_T = TypeVar("_T")

_HEADINGS = ("#", "similarity", "Hamming", "modality", "body part", "labels", "like", "where")
_NUMERIC = {"#", "similarity", "Hamming"}
_OPTIONAL = {"modality", "body part", "labels", "like"}
_CASES = {"series": "series", "study": "studies"}


_LINE_EVERY_S = 30.0


def progress_lines(
    console: Console, clock: Callable[[], float] = time.monotonic
) -> Callable[["Progress"], None]:
    """A callback for the indexing function that prints a line every 30 seconds, as for a log.

    clock: seconds from any start.
    """
    said = began = clock()
    stage = "discover"

    def show(progress: "Progress") -> None:
        nonlocal said, began, stage
        now = clock()
        if progress.stage != stage:
            stage, began = progress.stage, now
        if now - said < _LINE_EVERY_S:
            return
        said = now
        line = f"looking for files: {progress.total:,} so far"
        if stage == "index":
            share = progress.done / max(progress.total, 1)
            line = f"indexing: {progress.done:,} of {progress.total:,} ({share:.0%})"
            if progress.done and now > began:
                pace = progress.done / (now - began)
                left = timedelta(seconds=round((progress.total - progress.done) / pace))
                line += f", {pace:.0f}/s, {progress.refused:,} refused, {left} left"
        console.print(line, highlight=False, soft_wrap=True)

    return show


@contextmanager
def indexing_progress(console: Console, *, shown: bool) -> Iterator[Callable[["Progress"], None]]:
    """A progress bar for indexing. Yields the callback to give to the indexing function.

    shown: False = no bar, but a line every 30 seconds.
    """
    if not shown:
        yield progress_lines(console)
        return
    with Bar(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("looking for files", total=None, rate="")

        def show(progress: "Progress") -> None:
            if progress.stage == "discover":
                bar.update(task, completed=progress.total)
                return
            speed = bar.tasks[0].speed
            bar.update(
                task,
                description="indexing",
                total=progress.total,
                completed=progress.done,
                rate=f"{speed:.0f}/s, {progress.refused} refused" if speed else "",
            )

        yield show


def tracked(results: Iterable[_T], what: str, total: int) -> Iterator[_T]:
    """Iterates over the results, with a progress bar on standard error if that is a terminal."""
    errors = Console(stderr=True)
    shown = errors.is_terminal
    yield from track(results, what, total, console=errors, transient=True, disable=not shown)


def report_table(report: "IndexingReport") -> Table:
    """The report of an indexing run: instances by outcome, time and rate."""
    table = Table(title="Every instance, accounted for", title_justify="left")
    table.add_column("fate")
    table.add_column("instances", justify="right")
    if report.refused:
        table.add_column("what to do", overflow="fold")
    table.add_row("indexed", f"{report.indexed:,}")
    if report.duplicates:
        table.add_row("  of these under a second name", f"{report.duplicates:,}", style="dim")
    table.add_row("already there", f"{report.unchanged:,}")
    for one in by_reason(report.refused):
        reason, count, what_to_do = one["reason"], one["count"], one["what_to_do"]
        table.add_row(f"refused: {reason}", f"{count:,}", what_to_do, style="yellow")
    total = report.indexed + report.unchanged + sum(report.refused.values())
    table.add_section()
    table.add_row("seen", f"{total:,}")
    read = report.indexed + sum(report.refused.values())
    table.caption = f"{report.seconds:.1f} s"
    if read:
        table.caption += f", {read / report.seconds:.0f} instances/s"
    return table


def answer_table(name: str, document: dict[str, Any], offset: int = 0) -> Table:
    """One answer: its hits, and below them how they were found.

    Args:
        name: title of the table.
        document: as :func:`api.schemas.local_document` returns it.
        offset: number of hits on earlier pages.
    """
    table = _hits_table(name, document["hits"], offset)
    evidence = document["evidence"]
    if evidence["rung"] == "none":
        how = "nothing was searched"
    else:
        how = f"rung {evidence['rung']}: {_candidates(evidence)} candidates"
        # If there is a note, it says what was compared.
        if evidence["note"] is None:
            how += f", {_compared(evidence)}"
    remarks = [*_remarks(evidence), *_partial_hits(document["hits"], offset)]
    lines = [f"{how}; {_model_and_time(evidence)}", *remarks, _ood_line(document)]
    if document["next_page"] is not None:
        lines.append(f"there are more: --page {document['next_page']}")
    return _captioned(table, lines)


def recommendation_table(name: str, document: dict[str, Any]) -> Table:
    """A recommendation: its hits, and below them how they were found and the votes on labels.

    name, document: as for :func:`answer_table`.
    """
    evidence = document["evidence"]
    several = evidence["liked"] > 1
    rows = [
        one | {"like": (one["because"] or "the image")[:8] if several else ""}
        for one in document["hits"]
    ]
    table = _hits_table(name, rows, 0)
    examples = f"{evidence['liked']} liked" if several else "one example"
    if evidence["liked_of"] > evidence["liked"]:
        examples = f"{evidence['liked']} of {evidence['liked_of']:,} liked"
    if evidence["disliked"]:
        examples += f", {evidence['disliked']} disliked"
    rungs = ", ".join(
        f"{rung} ({count})" if several else rung for rung, count in evidence["rungs"].items()
    )
    in_all = " in all" if several else ""
    how = (
        f"rung {rungs}: {_candidates(evidence)} candidates{in_all}"
        if rungs
        else "nothing was searched"
    )
    if evidence["cases"] is not None and rungs:
        how += f"; {evidence['cases']:,} {_CASES[evidence['rule']]} compared whole"
        if evidence["cases_sampled"]:
            how += f", {evidence['cases_sampled']:,} of them by some of their images"
    lines = [f"{examples}; {how}; {_model_and_time(evidence)}", *_remarks(evidence)]
    lines += _partial_hits(rows, 0)
    if evidence["nearer_to_disliked"]:
        lines.append(f"{evidence['nearer_to_disliked']:,} left out: nearer to what is disliked")
    if document["votes"]:
        shares = ", ".join(
            f"{escape(vote['label'])} {vote['share']:.0%} ({vote['hits']})"
            for vote in document["votes"]
        )
        lines.append(f"labels, by similarity and not by probability: {shares}")
    return _captioned(table, [*lines, _ood_line(document)])


def duplicates_table(groups: Sequence[dict[str, Any]], *, more: bool) -> Table:
    """Groups of duplicates, one image per row. more: there are groups that are not shown."""
    table = Table(title="Duplicates", title_justify="left")
    for heading in ("similarity", "same", "study", "where"):
        right = heading == "similarity"
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for group in groups:
        for one in group["images"]:
            same = "yes" if one["identical"] else ""
            frame = f", frame {one['frame']}" if one["frame"] else ""
            cells = (f"{one['similarity']:.5f}", same, one["study"] or "", _location(one) + frame)
            table.add_row(*(printable(cell) for cell in cells))
        table.add_section()
    images = sum(len(group["images"]) for group in groups)
    noun = "group" if len(groups) == 1 else "groups"
    lines = [f"{len(groups):,} {noun} of {images:,} images"]
    if more:
        lines.append("there are more groups: raise --limit")
    return _captioned(table, lines)


def _hits_table(name: str, hits: Sequence[dict[str, Any]], offset: int) -> Table:
    rows = [
        {
            "#": str(place),
            "similarity": f"{hit['similarity']:.4f}",
            "Hamming": "" if hit["hamming"] is None else str(hit["hamming"]),
            "modality": hit["modality"] or "",
            "body part": hit["body_part"] or "",
            "labels": ", ".join(hit["labels"]),
            "like": hit.get("like", ""),
            "where": _location(hit),
        }
        for place, hit in enumerate(hits, start=offset + 1)
    ]
    table = Table(title=printable(name), title_justify="left")
    for heading in _HEADINGS:
        # To save room, optional columns that are empty for all hits are left out.
        if heading not in _OPTIONAL or any(row[heading] for row in rows):
            number = heading in _NUMERIC
            table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(printable(row[str(column.header)]) for column in table.columns))
    return table


def _captioned(table: Table, lines: Iterable[str]) -> Table:
    table.caption = "\n".join(lines)
    table.caption_justify = "left"
    return table


def _candidates(evidence: dict[str, Any]) -> str:
    return ("about " if evidence["estimated"] else "") + f"{evidence['candidates']:,}"


def _compared(evidence: dict[str, Any]) -> str:
    if evidence["approximate"]:
        return "some of which were compared"
    if evidence["cells"] is not None:
        in_all = evidence["cells_in_all"]
        cells = f"those in {evidence['cells']:,}{'' if in_all is None else f' of {in_all:,}'} cells"
        if evidence["radius"] is not None:
            cells += f" and everything within {evidence['radius']} of {evidence['bits']} bits"
        return f"{cells} were compared"
    if evidence["radius"] is None:
        return "everything was compared"
    return f"everything within {evidence['radius']} of {evidence['bits']} bits was compared"


def _model_and_time(evidence: dict[str, Any]) -> str:
    milliseconds = sum(evidence["timings_ms"].values())
    return f"model {evidence['model']}; {milliseconds:.0f} ms"


def _remarks(evidence: dict[str, Any]) -> list[str]:
    """Remarks below a table: the note, and what may make the hits incomplete or inexact."""
    from api.schemas import versions_remarks

    remarks = [] if evidence["note"] is None else [evidence["note"]]
    if evidence["approximate"]:
        remarks.append("a graph or quantised vectors chose the hits: some may have been missed")
    return remarks + versions_remarks(
        evidence["precision"], evidence["index_precision"], evidence["rendered_otherwise"]
    )


def _partial_hits(hits: Sequence[dict[str, Any]], offset: int) -> list[str]:
    """A remark on the hits whose instances lack frames; the JSON says which frames."""
    places = [
        f"#{place}" for place, hit in enumerate(hits, start=offset + 1) if hit["missing_frames"]
    ]
    return [f"frames are missing or broken in {', '.join(places)}"] if places else []


def _ood_line(document: dict[str, Any]) -> str:
    ood = document["ood"]
    if ood is None:
        return "no OOD verdict: the model is not calibrated for such a query"
    from api.schemas import by_detector

    by = by_detector(ood["p_values"])
    if ood["verdict"] == "known":
        return f"known kind of image (p = {ood['p']:.3f}; {by})"
    if ood["verdict"] == "unfamiliar":
        return (
            f"[yellow]unfamiliar: a known kind of image from a scanner, window or view that the "
            f"model does not know (p = {ood['p']:.4f} ≤ {ood['level']:g}; {by}); look at the hits "
            "before you rely on their order[/]"
        )
    advice = (
        "refused, as search.ood_policy says"
        if _was_refused(document["evidence"])
        else "do not trust these hits"
    )
    return (
        f"[bold yellow]FOREIGN: unlike what the model knows (p = {ood['p']:.4f} ≤ "
        f"{ood['alpha']:g}; {by}); {advice}[/]"
    )


def _was_refused(evidence: dict[str, Any]) -> bool:
    return evidence.get("rung") == "none" or evidence.get("rungs") == {}


def _location(hit: dict[str, Any]) -> str:
    """The last three parts of the hit's path, or its UID or id; the JSON has the whole path."""
    path = hit.get("path")
    return "/".join(Path(path).parts[-3:]) if path else str(hit["sop"] or hit["id"])


def printable(text: str) -> Text:
    """Text to print without parsing markup; undecodable bytes of a file name become "?"."""
    return Text(text.encode("utf-8", "replace").decode())

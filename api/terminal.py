"""What the command line shows: tables, progress and one-line errors."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
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

from api.schemas import by_detector
from indexer.pipeline import IndexingReport, Progress

__all__ = ["answer_table", "indexing_progress", "printable", "report_table", "tracked"]

_T = TypeVar("_T")

_HEADINGS = ("#", "similarity", "Hamming", "modality", "body part", "labels", "where")
_NUMBERS = {"#", "similarity", "Hamming"}
_OPTIONAL = {"modality", "body part", "labels"}


@contextmanager
def indexing_progress(console: Console, *, shown: bool) -> Iterator[Callable[[Progress], None]]:
    """A bar with rate and time left on a terminal; nothing at all when not ``shown``."""
    if not shown:
        yield lambda _: None
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

        def show(progress: Progress) -> None:
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
    """The results, with a bar on standard error while they come, if that is a terminal."""
    errors = Console(stderr=True)
    shown = errors.is_terminal
    yield from track(results, what, total, console=errors, transient=True, disable=not shown)


def report_table(report: IndexingReport) -> Table:
    """The closing report for people."""
    table = Table(title="Every instance, accounted for", title_justify="left")
    table.add_column("fate")
    table.add_column("instances", justify="right")
    table.add_row("indexed", f"{report.indexed:,}")
    if report.duplicates:
        table.add_row("  of these under a second name", f"{report.duplicates:,}", style="dim")
    table.add_row("already there", f"{report.unchanged:,}")
    for reason, count in report.refused.items():
        table.add_row(f"refused: {reason}", f"{count:,}", style="yellow")
    total = report.indexed + report.unchanged + sum(report.refused.values())
    table.add_section()
    table.add_row("seen", f"{total:,}")
    read = report.indexed + sum(report.refused.values())
    table.caption = f"{report.seconds:.1f} s"
    if read:
        table.caption += f", {read / report.seconds:.0f} instances/s"
    return table


def answer_table(name: str, document: dict[str, Any]) -> Table:
    """One answer for people: hits, and under them how they were found."""
    rows = [
        {
            "#": str(place),
            "similarity": f"{hit['similarity']:.4f}",
            "Hamming": str(hit["hamming"]),
            "modality": hit["modality"] or "",
            "body part": hit["body_part"] or "",
            "labels": ", ".join(hit["labels"]),
            "where": _where(hit),
        }
        for place, hit in enumerate(document["hits"], start=1)
    ]
    table = Table(title=printable(name), title_justify="left")
    for heading in _HEADINGS:
        # A terminal has no room for what no hit has.
        if heading not in _OPTIONAL or any(row[heading] for row in rows):
            number = heading in _NUMBERS
            table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(printable(row[str(column.header)]) for column in table.columns))
    evidence = document["evidence"]
    reach = (
        "everything was compared"
        if evidence["radius"] is None
        else f"everything within {evidence['radius']} of {evidence['bits']} bits was compared"
    )
    how = (
        "nothing was searched"
        if evidence["rung"] == "none"
        else f"rung {evidence['rung']}: {evidence['candidates']:,} candidates, {reach}"
    )
    milliseconds = sum(evidence["timings_ms"].values())
    lines = [f"{how}; model {evidence['model']}; {milliseconds:.0f} ms", _verdict(document)]
    table.caption = "\n".join(lines)
    table.caption_justify = "left"
    return table


def _verdict(document: dict[str, Any]) -> str:
    ood = document["ood"]
    if ood is None:
        return "no OOD verdict: this model has no calibration"
    by = by_detector(ood["p_values"])
    if not ood["foreign"]:
        return f"known kind of image (p = {ood['p']:.3f}; {by})"
    advice = (
        "refused, as search.ood_policy says"
        if document["evidence"]["rung"] == "none"
        else "do not trust these hits"
    )
    return (
        f"[bold yellow]FOREIGN: unlike what the model knows (p = {ood['p']:.4f} ≤ "
        f"{ood['alpha']:g}; {by}); {advice}[/]"
    )


def _where(hit: dict[str, Any]) -> str:
    """The end of the hit's path; the whole of it, which no table holds, is in the JSON."""
    path = hit.get("path")
    return "/".join(Path(path).parts[-3:]) if path else str(hit["sop"] or hit["id"])


def printable(text: str) -> Text:
    """A file's name as it is: no markup is in it, and bytes that are no text are replaced."""
    return Text(text.encode("utf-8", "replace").decode())

"""Tables of jobs for the terminal."""

from collections.abc import Sequence
from datetime import timedelta

from rich.table import Table

from api.cli.refusals import by_reason
from api.cli.terminal import printable
from indexer.jobs.summary import JobSummary

__all__ = ["job_table", "jobs_table"]


def jobs_table(found: Sequence[JobSummary]) -> Table:
    """A table with one row per job or run."""
    table = Table()
    for name in ("job", "source", "state"):
        table.add_column(name)
    for name in ("done", "of", "refused", "per second", "left"):
        table.add_column(name, justify="right")
    table.add_column("made")
    for one in found:
        table.add_row(
            str(one.id),
            printable(one.source or "folder"),
            one.status if one.kind != "run" else f"{one.status} (index)",
            f"{one.done:,}",
            f"{one.total:,}{'+' if one.discovering and one.kind != 'run' else ''}",
            f"{sum(one.refused.values()):,}",
            "" if one.per_second is None else f"{one.per_second:.1f}",
            _duration(one.seconds_left),
            one.created_at or "",
        )
    return table


def job_table(one: JobSummary) -> Table:
    """A table of one job: instances by outcome, tasks by state, pace, errors."""
    what = "Run" if one.kind == "run" else "Job"
    table = Table(title=f"{what} {one.id}: {one.status}", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    if one.note is not None:
        table.add_row("note", printable(one.note), style="yellow")
    table.add_row("source", printable(one.source))
    more = " so far" if one.discovering else ""
    table.add_row("discovered", f"{one.discovered:,}{more}")
    table.add_row("already there", f"{one.unchanged:,}")
    table.add_row("to be read", f"{one.total:,}{more}")
    table.add_section()
    table.add_row("done", f"{one.done:,}")
    table.add_row("indexed", f"{one.indexed:,}")
    if one.duplicates:
        table.add_row("  of these under a second name", f"{one.duplicates:,}", style="dim")
    for refused in by_reason(one.refused):
        table.add_row(f"refused: {refused['reason']}", f"{refused['count']:,}", style="yellow")
    table.add_section()
    for state, count in one.tasks.items():
        table.add_row(f"tasks {state}", f"{count:,}", style="red" if state == "failed" else "")
    if one.per_second is not None:
        table.add_row("instances per second", f"{one.per_second:.1f}")
    if one.seconds_left is not None:
        table.add_row("time left", _duration(one.seconds_left))
    for number, error in one.errors.items():
        table.add_row(f"task {number}", printable(error), style="yellow")
    return table


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))

"""The tables that ``precedent evaluate`` prints."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from api.cli.terminal import printable
from engine.evaluation.metrics import Interval
from engine.evaluation.quality import QualityReport

__all__ = ["show"]


def show(console: Console, report: QualityReport, document: dict[str, Any]) -> None:
    """Prints the report as tables and remarks. document: what ``--json`` would print."""
    console.print(_by_order(report, document["model"]))
    console.print(_by_class(report))
    for line in _remarks(report, document):
        console.print(printable(line), soft_wrap=True)


def _by_order(report: QualityReport, model: str) -> Table:
    k = report.k
    # Narrow enough for a terminal of 80 columns.
    table = Table(title=f"model {model}", title_justify="left")
    table.add_column("order", no_wrap=True)
    for heading in (f"mAP\n@{k}", "95 %", "by hits\nfound", "P@1", "P@10", "overlap\n@10"):
        table.add_column(heading, justify="right", no_wrap=True)
    for order, found in report.orders.items():
        stable = report.stability.get(order)
        table.add_row(
            order,
            *_interval(found.map_relevant),
            f"{found.map_found.mean:.4f}",
            f"{found.precision_at_1:.4f}",
            f"{found.precision_at_10:.4f}",
            "" if stable is None else f"{stable:.4f}",
        )
    return table


def _by_class(report: QualityReport) -> Table:
    judged = report.foreign is not None
    table = Table(title="order content", title_justify="left")
    table.add_column("class", overflow="fold")
    for heading in (
        *("queries", f"mAP\n@{report.k}", "95 %", "P@1", "P@10"),
        *(["foreign"] if judged else []),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, found in report.classes.items():
        scores = found.orders.get("content")
        cells = (
            ["–"] * 4
            if scores is None
            else [
                *_interval(scores.map_relevant),
                f"{scores.precision_at_1:.4f}",
                f"{scores.precision_at_10:.4f}",
            ]
        )
        table.add_row(
            printable(name),
            f"{found.queries:,}",
            *cells,
            *([] if found.foreign is None else [f"{found.foreign:.4f}"]),
        )
    return table


def _interval(found: Interval) -> tuple[str, str]:
    return f"{found.mean:.4f}", f"{found.low:.3f}–{found.high:.3f}"


def _remarks(report: QualityReport, document: dict[str, Any]) -> Iterator[str]:
    k = report.k
    yield (
        f"{report.queries:,} queries, {report.database:,} images, {report.codes.distinct:,} "
        f"different codes of {report.codes.bits} bits"
    )
    yield (
        f"mAP@{k} by min({k}, relevant) unless said otherwise; overlap@10 is between shuffled "
        "databases"
    )
    if report.foreign is not None:
        yield f"{report.foreign:.4f} of all queries called foreign"
    against = report.against_random["content"]
    yield (
        f"content against random ties: {against.mean:+.4f} ({against.low:+.4f} to "
        f"{against.high:+.4f}), p = {against.p:.4f}"
    )
    if report.unanswerable:
        yield (f"{report.unanswerable:,} queries are in no mean: the database has nothing relevant")
    if report.related:
        yield f"{report.related:,} queries have themselves or their patient there; left out"
    for side, refused in document["refused"].items():
        if refused:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in refused.items())
            yield f"{side} refused: {reasons}"
    if document["unlabelled"]:
        yield f"database: {document['unlabelled']:,} images without a label left out"
    if document["report"]:
        yield f"report: {document['report']}/report.md"

"""What ``precedent adapt`` prints of two models on the same queries."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from api.cli.terminal import printable

__all__ = ["show_comparison"]

_NAMED = 8


def show_comparison(console: Console, document: Mapping[str, Any]) -> None:
    """Prints a comparison, which is a ``ModelComparison`` as JSON values with both models."""
    console.print(_as_a_whole(document))
    console.print(_by_class(document))
    for line in _remarks(document):
        console.print(printable(line), soft_wrap=True)


def _as_a_whole(document: Mapping[str, Any]) -> Table:
    # Narrow enough for a terminal of 80 columns, as is the other one.
    table = Table(title="the new model beside the one in use", title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in (f"mAP@{document['k']}", "95 %", "P@1", "95 %", "foreign"):
        table.add_column(heading, justify="right", no_wrap=True)
    measures = (document["mean_average_precision"], document["precision_at_1"])
    for name, side in (("in use", "before"), ("new", "after")):
        cells = [cell for one in measures for cell in _interval(one[side])]
        table.add_row(name, *cells, _share(document[f"foreign_{side}"]))
    table.add_row("difference", *(cell for one in measures for cell in _signed(one["difference"])))
    return table


def _by_class(document: Mapping[str, Any]) -> Table:
    table = Table(title=f"mAP@{document['k']} by class", title_justify="left")
    table.add_column("class", overflow="fold")
    for heading in ("queries", "in use", "new", "change", "95 %", "foreign"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, one in document["classes"].items():
        table.add_row(
            printable(name),
            f"{one['queries']:,}",
            f"{one['before']:.3f}",
            f"{one['after']:.3f}",
            *(_signed(one["difference"]) if one["patients"] > 1 else ("", "one patient")),
            f"{_share(one['foreign_before'])} → {_share(one['foreign_after'])}",
        )
    return table


def _remarks(document: Mapping[str, Any]) -> Iterator[str]:
    new, before = document["model"], document["model_before"]
    yield (
        f"{document['queries']:,} queries of {document['patients']:,} patients among "
        f"{document['database']:,} images that the new model was not trained on; those of the "
        "query's own patient do not count"
    )
    yield {
        "better": f"model {new} finds more than {before}",
        "worse": f"model {new} finds LESS than {before}, and is not recommended",
        "alike": f"models {new} and {before} cannot be told apart by these queries: the difference "
        "may be chance, and the new one is not recommended",
    }[document["outcome"]]
    worse = document["worse_classes"]
    if worse:
        named = ", ".join(
            f"{name!r} ({document['classes'][name]['difference']['mean']:+.3f})"
            for name in worse[:_NAMED]
        )
        more = f" and {len(worse) - _NAMED} more" if len(worse) > _NAMED else ""
        yield f"worse in {len(worse)} of {len(document['classes'])} classes: {named}{more}"
    else:
        yield "worse in none of the classes"


def _interval(found: Mapping[str, float]) -> tuple[str, str]:
    return f"{found['mean']:.3f}", f"{found['low']:.3f}–{found['high']:.3f}"


def _signed(found: Mapping[str, float]) -> tuple[str, str]:
    return f"{found['mean']:+.3f}", f"{found['low']:+.2f} to {found['high']:+.2f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
